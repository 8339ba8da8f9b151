"""The rooms of the source, read from its imports: which there are, which arrow leads where, and whether any goes in a circle.

`python tests/helpers/rooms.py` (`make walls`) prints them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "src" / "grpokit"

# The table of rooms, from below to above: a room imports rooms of the lines above it, and never one of its own line.
FLOORS = (
    ("types", "common"),
    ("parallel", "losses", "data"),
    ("logprobs", "batch", "config"),
    ("policy",),
    ("rollouts", "environments", "rewards"),
    ("runs",),
    ("training",),
    ("integrations", "commands"),
    ("__main__", "benchmarks"),
)
# Files at the top that are no rooms: the package's face, and a face of losses/testing.py.
FACES = {"__init__": "grpokit", "testing": "losses"}


def room_of(file: Path) -> str:
    """The room of a file of the source or of the benchmarks."""
    if not file.is_relative_to(PACKAGE):
        return "benchmarks"
    top = file.relative_to(PACKAGE).with_suffix("").parts[0]
    return FACES.get(top, top)


def imported_modules(file: Path) -> Iterator[str]:
    """The absolute names of the modules that a file imports, at any depth; a name imported from a package with it."""
    inside = file.is_relative_to(PACKAGE)
    package = ["grpokit", *file.relative_to(PACKAGE).parts[:-1]] if inside else []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "grpokit":
                yield from (f"grpokit.{alias.name}" for alias in node.names)
            else:
                yield module


def arrows() -> dict[tuple[str, str], list[str]]:
    """(room, room that it imports) → the files that do."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in sorted([*PACKAGE.rglob("*.py"), *(REPOSITORY / "benchmarks").rglob("*.py")]):
        for module in imported_modules(file):
            parts = module.split(".")
            if parts[0] == "grpokit" and len(parts) > 1:
                start, end = room_of(file), FACES.get(parts[1], parts[1])
                is_room = (PACKAGE / end).is_dir() or (PACKAGE / f"{end}.py").is_file()
                if is_room and start not in (end, "grpokit"):  # the package's face imports late
                    found.setdefault((start, end), []).append(str(file.relative_to(REPOSITORY)))
    return found


def rooms() -> list[str]:
    """Every room, from below to above."""
    known = [room for floor in FLOORS for room in floor]
    here = {room_of(file) for file in PACKAGE.rglob("*.py")} | {"benchmarks"}
    return [room for room in known if room in here] + sorted(here - set(known) - {"grpokit"})


def circles() -> list[tuple[str, ...]]:
    """Rooms that can be reached from themselves."""
    leads: dict[str, set[str]] = {}
    for start, end in arrows():
        leads.setdefault(start, set()).add(end)
    reached = {room: set(leads.get(room, ())) for room in rooms()}
    for _ in reached:
        for room, ends in reached.items():
            reached[room] = ends.union(*(leads.get(end, set()) for end in ends))
    return [(room, *sorted(ends)) for room, ends in reached.items() if room in ends]


def upward() -> list[str]:
    """Arrows that don't lead down: `room → room (files)`."""
    floor = {room: number for number, line in enumerate(FLOORS) for room in line}
    return [
        f"{start} → {end} ({', '.join(sorted(set(files))[:3])})"
        for (start, end), files in arrows().items()
        if start not in floor or end not in floor or floor[start] <= floor[end]
    ]


def main() -> None:
    """Prints rooms, arrows and circles."""
    found, names = arrows(), rooms()
    print(f"{len(names)} rooms, {len(found)} arrows, {len(FLOORS)} floors\n")
    for room in names:
        ends = [end for start, end in found if start == room]
        print(f"{room:12} imports {', '.join(sorted(ends, key=names.index)) or 'no other room'}")
    print("\ncircles:", "; ".join(" → ".join(circle) for circle in circles()) or "none")
    print("arrows that lead up:", "; ".join(upward()) or "none")


if __name__ == "__main__":
    main()
