"""``python -m tools.faults``: the fault campaign of ``make faults``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.faults.campaign import SCENARIOS, Campaign, report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign in a temporary folder, or in one of a disk that is to be tried; answers the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.faults",
        description="Kills, fills and damages what running suites stand on, and checks that nothing measured is lost.",
    )
    parser.add_argument("--kills", type=int, default=40, help="suites killed at random moments (default 40)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and choices (default 0)")
    parser.add_argument("--folder", type=Path, help="work below this folder, on the disk that is to be tried")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), default=list(SCENARIOS), help="these scenarios")
    arguments = parser.parse_args(argv)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's doing for what it starts in the background:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # suites would inherit it, and are sent Ctrl-C
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-", dir=arguments.folder) as folder:
        campaign = Campaign(Path(folder), kills=arguments.kills, seed=arguments.seed)
        try:
            campaign.run(arguments.only)
        finally:  # what was counted is said also where the campaign itself breaks
            code = report(campaign, time.monotonic() - started)
    return code


if __name__ == "__main__":
    sys.exit(main())
