"""``metagrad-bench kernels``: INT8 and INT4 training steps against FP32 and bf16, eager and compiled, layer by layer.

All sides of a network train in turn in one process, so that a ratio of two of their medians is what it says. Bytes kept
for backward, peaks and the per-layer table come from processes of their own. See docs/kernels.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.config import MOST_THREADS
from bench.errors import ConfigError, ExitCode
from bench.models import CUSTOM, MODELS, check_model
from tools.json_file import check_json_file, writing_measured
from tools.kernels.measure import QUICK, Effort, measure_model
from tools.kernels.results import ModelResult, write_json
from tools.output import say, table_console
from tools.verb_parser import verb_parser

if TYPE_CHECKING:
    from tools.kernels.sides import Work

DEFAULT_MODELS = ("vgg16", "resnet20")
MOST = 2**20  # images, pixels, steps


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    default = Effort()
    parser = verb_parser(
        "kernels",
        description="Whole training steps with INT8 and INT4 weights, activations and error signals against eager FP32 "
        "(channels-last) and bf16 autocast and the same two under torch.compile, in turn in one process; bytes kept "
        "for backward and peak memory; per layer and GEMM what ran, how fast, and the share of this machine's "
        "ceilings. Images are synthetic. docs/kernels.md says what each column means.",
        epilog="example: metagrad-bench kernels --model vgg16 --batch 128 --json kernels.json\n"
        "exit codes: 0 measured, 1 a measurement ran out of memory, 2 wrong usage or bad input, 130 interrupted",
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME",
        help=f"{', '.join(MODELS)}, or your own as package.module:function; may be repeated; "
        f"none: {' and '.join(DEFAULT_MODELS)}",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, metavar="N", help=f"images a step ({default.batch_size})")
    parser.add_argument("--image-size", type=int, metavar="N", help=f"height and width ({default.image_size})")
    parser.add_argument(
        "--dispatch", default="integer", metavar="HOW",
        help="integer (every product), auto (the fastest of the bit-equal paths) or simulate (integer)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, metavar="N", help=f"timed steps of each side ({default.steps})")
    parser.add_argument(
        "--budget-s", type=float, metavar="S",
        help=f"stop the timed steps after so many seconds, but not before three ({default.budget_s:g})",
    )  # fmt: skip
    parser.add_argument("--no-compile", action="store_true", help="leave out FP32 and bf16 under torch.compile")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of a CPU's operators (as torch chooses)")
    parser.add_argument("--quick", action="store_true", help="small and few: shows that it runs, measures nothing")
    parser.add_argument("--json", metavar="FILE", help="also write all figures and samples there")
    parser.add_argument("--no-progress", action="store_true", help="print no progress")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Raises:
        UserError: one sentence about what is wrong.
    """
    args = build_parser().parse_args(list(argv))
    effort = choose_effort(args)
    models = list(dict.fromkeys(args.model or DEFAULT_MODELS))
    _check_arguments(args, models, effort)

    from rich.text import Text

    from bench.hardware.environment import read_environment, to_plain
    from bench.hardware.probe import resolve_device
    from bench.native import pieces
    from bench.progress import SuiteProgress
    from tools.kernels.tables import render

    device = resolve_device(args.device)
    environment = to_plain(read_environment(device, elementwise=pieces(device)))
    console = table_console()
    for warning in busy_before():
        console.print(Text(warning, style="yellow"))
    progress = SuiteProgress(len(models), show=not args.no_progress)
    results: dict[str, ModelResult] = {}

    def write() -> None:
        write_json(Path(args.json), results, quick=args.quick, environment=environment)

    try:
        with writing_measured(args.json, results, write):
            for name in models:
                work = make_work(name, args, effort, str(device))
                results[name] = measure_model(name, work, effort, progress, compiled=not args.no_compile)
                progress.finish_cell("measured")
                progress.close()  # the next network draws a new bar
                render(results[name], console)
    except KeyboardInterrupt:
        progress.close()
        say("Interrupted." if args.json and results else "Interrupted; no file was written.")
        return ExitCode.INTERRUPTED
    finally:
        progress.close()
    return ExitCode.OK


def choose_effort(args: argparse.Namespace) -> Effort:
    """The effort that the arguments ask for."""
    asked = {"batch_size": args.batch, "image_size": args.image_size, "steps": args.steps, "budget_s": args.budget_s}
    effort = QUICK if args.quick else Effort()
    return dataclasses.replace(effort, **{key: value for key, value in asked.items() if value is not None})


def make_work(name: str, args: argparse.Namespace, effort: Effort, device: str) -> Work:
    """What the passes build their sides from; a name with a colon is a user's factory."""
    from tools.kernels.sides import Work

    own = ":" in name
    return Work(
        model=CUSTOM if own else name, factory=name if own else None, batch_size=effort.batch_size,
        image_size=effort.image_size, dispatch=args.dispatch, device=device, threads=args.threads,
    )  # fmt: skip


def busy_before() -> list[str]:
    """A warning if other programs ran in the last minute."""
    from tools.doctor.advice import BUSY_LOAD
    from tools.doctor.collect import load_average

    load = load_average()
    if not isinstance(load, float) or load <= BUSY_LOAD:
        return []
    return [
        f"Warning: the machine was busy in the last minute (load average {load:.1f}): what runs beside this benchmark "
        "is in its times, so wait or stop it and measure again."
    ]


def _check_arguments(args: argparse.Namespace, models: Sequence[str], effort: Effort) -> None:
    """Refuse what cannot be measured before anything starts.

    Raises:
        UserError: one sentence.
    """
    # Batch-norm cannot train on one value a channel, which one image may leave in the last layers.
    for key, value, least in (
        ("batch", effort.batch_size, 2), ("image-size", effort.image_size, 1), ("steps", effort.steps, 1),
        ("threads", 1 if args.threads is None else args.threads, 1),
    ):  # fmt: skip
        if value < least:
            raise ConfigError(f"--{key} {value} is not possible: it must be {least} or more.")
        most = MOST_THREADS if key == "threads" else MOST
        if value > most:
            raise ConfigError(f"--{key} {value} is not possible: it must be {most:,} or less.")
    if not 0 < effort.budget_s < float("inf"):
        raise ConfigError(f"--budget-s {effort.budget_s:g} is not possible: name a number of seconds above 0.")
    for name in models:
        own = ":" in name
        if name in MODELS and effort.image_size < MODELS[name].min_image_size:
            least = MODELS[name].min_image_size
            raise ConfigError(f"--image-size {effort.image_size} is too small for {name}: take {least} or more.")
        if name == CUSTOM:
            raise ConfigError("--model custom names no network: write it as --model package.module:function.")
        if not own and name not in MODELS:
            raise ConfigError(
                f"--model {name} is not known: take {', '.join(MODELS)}, or your own as package.module:function."
            )
        check_model(CUSTOM if own else name, factory=name if own else None)
    if args.json:
        check_json_file(args.json)

    from bench.layers.convert import DISPATCHES
    from bench.quantizers import check_name

    check_name("dispatch", args.dispatch, DISPATCHES)
