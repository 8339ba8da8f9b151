"""The completions of a step as a list that can be filtered and sorted, and one of them in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...runs.report.data import is_number

EXCERPT = 240  # characters of a completion in the list
PAGE = 20  # completions on a page of the list

Row = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which completions to show, and in which order.

    Example:
        >>> wanted = Wanted(reward=(0.5, None), ending="length", sort="length")
    """

    reward: tuple[float | None, float | None] = (None, None)
    length: tuple[float | None, float | None] = (None, None)
    ending: str = ""
    text: str = ""
    sort: Literal["reward", "length", "group"] = "group"
    descending: bool = True
    page: int = 0
    holding: str = ""  # group/generation of a completion: the page that has it


def rows_of(groups: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns a row for each completion of a step."""
    return [
        _row(group, g, i)
        for g, group in enumerate(groups)
        for i in range(len(_list(group.get("completions"))))
    ]


def _row(group: Mapping[str, Any], g: int, i: int) -> Row:
    text = str(_list(group.get("completions"))[i])
    episode = _at(group.get("episodes"), i)
    told = episode if isinstance(episode, dict) else {}
    length = _at(group.get("lengths"), i)
    rewards = group.get("rewards")
    return {
        "group": g,  # its place among the recorded groups; `number`: within the step, as recorded tokens have it
        "number": group.get("group", g),
        "generation": i,
        "source": str(group.get("source") or ""),
        "reward": _number(_at(group.get("reward"), i)),
        "rewards": {
            str(name): _number(_at(column, i))
            for name, column in (rewards if isinstance(rewards, dict) else {}).items()
        },
        "advantage": _number(_at(group.get("advantages"), i)),
        "length": length if is_number(length) else len(text),
        "ending": str(told.get("ending") or _at(group.get("finish_reasons"), i) or "unknown"),
        "turns": told.get("turns"),
        "text": text,
    }


def chosen(rows: Sequence[Row], wanted: Wanted) -> list[Row]:
    """Returns the rows that pass all filters, in the order that is wanted. Rows without a reward come last."""
    needle = wanted.text.casefold()
    kept = [
        row
        for row in rows
        if _within(row["reward"], *wanted.reward)
        and _within(row["length"], *wanted.length)
        and wanted.ending in ("", row["ending"])
        and (not needle or needle in row["text"].casefold())
    ]
    if wanted.sort == "group":
        return kept
    known = [row for row in kept if row[wanted.sort] is not None]
    known.sort(key=lambda row: row[wanted.sort], reverse=wanted.descending)
    return known + [row for row in kept if row[wanted.sort] is None]


def listed(groups: Sequence[Mapping[str, Any]], wanted: Wanted) -> Row:
    """Returns a page of the list, and what there is to filter by."""
    rows = rows_of(groups)
    found = chosen(rows, wanted)
    pages = max(1, -(-len(found) // PAGE))
    places = [i for i, row in enumerate(found) if f"{row['group']}/{row['generation']}" == wanted.holding]
    page = min(max(0, places[0] // PAGE if places else wanted.page), pages - 1)
    shown = found[page * PAGE : (page + 1) * PAGE]
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    lengths = [row["length"] for row in rows]
    return {
        "total": len(rows),
        "found": len(found),
        "page": page,
        "pages": pages,
        "rows": [{**row, "text": row["text"][:EXCERPT], "more": len(row["text"]) > EXCERPT} for row in shown],
        "rewardRange": [min(rewards), max(rewards)] if rewards else None,
        "lengthRange": [min(lengths), max(lengths)] if lengths else None,
        "unit": "tokens" if any(group.get("lengths") for group in groups) else "characters",
        "endings": dict(Counter(row["ending"] for row in rows).most_common()),
    }


def in_full(groups: Sequence[Mapping[str, Any]], g: int, i: int) -> Row:
    """Returns a completion with its prompt, its columns, and its conversation if it is an episode.

    Raises:
        ValueError: the step has no such completion.
    """
    if not (0 <= g < len(groups) and 0 <= i < len(_list(groups[g].get("completions")))):
        raise ValueError(f"completion {g}/{i}: this step has recorded no such one")
    group = groups[g]
    episode = _at(group.get("episodes"), i)
    told = episode if isinstance(episode, dict) else {}
    extras = group.get("extras")
    return {
        **_row(group, g, i),
        "prompt": told.get("prompt") or group.get("prompt"),
        "columns": group.get("columns") if isinstance(group.get("columns"), dict) else {},
        "messages": told.get("messages"),
        "error": told.get("error"),
        "extras": {
            str(name): _at(column, i) for name, column in (extras if isinstance(extras, dict) else {}).items()
        },
    }


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _at(values: Any, i: int) -> Any:
    return values[i] if isinstance(values, list) and i < len(values) else None


def _number(value: Any) -> float | None:
    return value if is_number(value) else None
