from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Import order of the library's rooms: each may use only those above it (and itself).
ROOMS = (
    "errors", "units", "printable", "files", "privacy", "config", "reporting", "seeding", "layout", "hardware",
    "native", "kernels", "quantizers", "hypernets", "optim", "layers", "models", "data", "update", "records.schema",
    "methods", "profilers", "training", "records", "stats", "timing", "timing_summary", "gating", "keys", "locks",
    "jobs", "pulse", "progress", "estimate", "outcome", "passes", "process", "journal", "cell_folder", "cell_passes",
    "cell_results", "shared_weights", "cell", "precheck", "cell_status", "status", "composing", "app",
)  # fmt: skip


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room_of(module: str) -> str | None:
    """The longest room name that a dotted module of the library belongs to."""
    inner = module.removeprefix("bench.")
    matches = [room for room in ROOMS if inner == room or inner.startswith(f"{room}.")]
    return max(matches, key=len) if matches else None


def library_files() -> list[tuple[Path, str]]:
    files = []
    for path in sorted((ROOT / "bench").rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        if module != "bench":
            room = room_of(module)
            assert room is not None, f"{path.relative_to(ROOT)} stands in no room: add it to ROOMS"
            files.append((path, room))
    return files


def test_a_room_imports_only_rooms_above_it() -> None:
    for path, room in library_files():
        for name in imported(path):
            other = room_of(name) if name.startswith("bench.") else None
            if other is not None:
                assert ROOMS.index(other) <= ROOMS.index(room), f"{path.relative_to(ROOT)} ({room}) imports {name}"


def test_kernels_and_quantizers_do_not_know_each_other() -> None:
    for path, room in library_files():
        if room == "quantizers":
            assert not any(name.startswith("bench.kernels") for name in imported(path)), path


def test_the_library_knows_neither_reports_nor_tools_and_reports_not_tools() -> None:
    for folder, forbidden in (("bench", ("reports", "tools")), ("reports", ("tools",)), ("tools", ("tests",))):
        for path in (ROOT / folder).rglob("*.py"):
            for name in imported(path):
                assert name.split(".")[0] not in forbidden, f"{path.relative_to(ROOT)} imports {name}"


def test_one_file_calls_the_integer_product() -> None:
    callers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("bench", "tools", "reports")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "_int_mm"
    ]
    assert set(callers) == {"bench/kernels/int_mm.py"}
