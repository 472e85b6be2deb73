"""Files beside a record that figures read: what a hypernetwork did to each layer's gradient in every observed step."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.records.curves import HYPERNET_FILE

MAX_FILE_BYTES = 32 * 1024**2  # a larger one takes seconds to read
COLUMNS = ("amplification", "cosine", "zero_share_pct")


def read_hypernet_steps(folder: Path | None) -> pd.DataFrame | str:
    """Quartiles over the layers of every observed step: a column ``step``, then ``<name>_q1``, ``_median``, ``_q3``.

    Args:
        folder: of the record; None where it is unknown.

    Returns:
        The frame, or why there is none.
    """
    path = folder / HYPERNET_FILE if folder is not None else None
    if path is None or not path.is_file():
        return f"no {HYPERNET_FILE} lies beside the record"
    if path.stat().st_size > MAX_FILE_BYTES:
        return f"its {HYPERNET_FILE} has more than {MAX_FILE_BYTES // 1024**2} MiB"
    try:
        frame = pd.read_csv(path, usecols=["step", *COLUMNS], dtype="float64")
    except (OSError, ValueError):  # no CSV, other columns, no numbers, no UTF-8
        return f"its {HYPERNET_FILE} cannot be read"
    if frame.empty:
        return f"its {HYPERNET_FILE} is empty"
    by_step = frame.groupby("step", sort=True)
    levels = {"q1": 0.25, "median": 0.5, "q3": 0.75}
    quartiles = {f"{name}_{end}": by_step[name].quantile(level) for name in COLUMNS for end, level in levels.items()}
    return pd.DataFrame(quartiles).reset_index()
