"""``python -m tools.faults``: the fault campaign of ``make faults``."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.faults.campaign import SCENARIOS, Campaign
from tools.faults.kept import Kept, as_text, quote


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign, or go on with one that was stopped; answers the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.faults",
        description="Kills, fills and damages what running suites stand on, and checks that nothing measured is lost. "
        "A campaign that was stopped is gone on with by the same command.",
    )
    parser.add_argument("--kills", type=int, default=40, help="suites killed at random moments (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and choices (default 0)")
    parser.add_argument(
        "--folder", type=Path, default=Path("out/faults"),
        help="work in this new folder, on the disk that is to be tried (default out/faults)",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), help="these scenarios")
    parser.add_argument(
        "--json", type=Path, help="where counts are kept (default campaign.json in the folder, which then stays)"
    )
    parser.add_argument("--page", type=Path, help="a markdown page to put the counts of a finished campaign into")
    arguments = parser.parse_args(argv)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's doing for what it starts in the background:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # suites would inherit it, and are sent Ctrl-C
    folder = arguments.folder.absolute()
    path = arguments.json or folder / "campaign.json"
    kept = Kept(path, kills=arguments.kills, seed=arguments.seed, only=arguments.only)
    work = folder / kept.work
    for other in folder.glob("work-*"):  # of campaigns that are not gone on with
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    campaign = Campaign(work, kills=arguments.kills, seed=arguments.seed, done=kept.standings)
    try:
        campaign.run(arguments.only, keep=lambda: kept.write(list(campaign.standings.values())))
    finally:  # what was counted is said also where the campaign itself breaks
        written = json.loads(path.read_text(encoding="utf-8"))
        print(f"\n{as_text(written)}")
    if not written["wrong"]:
        shutil.rmtree(work)
    if arguments.page is not None:
        arguments.page.write_text(quote(arguments.page.read_text(encoding="utf-8"), written), encoding="utf-8")
    return 1 if written["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
