"""How what runs in a pass tells where it stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Takes progress: `phase` in words, `done` of `total`, and as `partial` what could be answered now, or how to make it.
Report = Callable[[dict[str, Any]], None]
