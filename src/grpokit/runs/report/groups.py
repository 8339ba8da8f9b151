"""The best and the worst group of the last recorded step: prompts, completions and rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from .data import Row, RunData, is_number
from .markup import box, escape, number

MOST_COMPLETIONS = 16  # completions shown of a group: the best and the worst where it has more


def groups_html(run: RunData) -> str:
    """Returns the section, or nothing where the run has written no completions."""
    if not run.groups:
        return ""
    order = sorted(run.groups, key=lambda group: _mean(group.get("reward")), reverse=True)
    shown = (
        [("Best group", order[0]), ("Worst group", order[-1])] if len(order) > 1 else [("Group", order[0])]
    )
    step = run.groups[0].get("step")
    when = f" of step {step}" if step is not None else ""
    note = (
        "By mean reward, of the groups that were written to completions.jsonl. A is the advantage; "
        "positive: the completion was made likelier."
    )
    return (
        f"<section><h2>Completions{when}</h2><p class='note'>{note}</p><div class='groups'>"
        + "".join(_group(title, group) for title, group in shown)
        + "</div></section>"
    )


def _group(title: str, group: Row) -> str:
    mean = _mean(group.get("reward"))
    reward = f"mean {_reward(mean)}" if math.isfinite(mean) else "no reward"
    completions = _completions(group)
    left_out = len(completions) - MOST_COMPLETIONS
    if left_out > 0:
        half = MOST_COMPLETIONS // 2
        gap = f'<li class="note">… {left_out} more between these …</li>'
        items = [*completions[:half], gap, *completions[-half:]]
    else:
        items = completions
    return (
        f'<article class="group"><h3>{title} <small>{reward}</small></h3>'
        f'<p class="source">{escape(group.get("source") or "")}</p>{_prompt(group.get("prompt"))}'
        f'{_columns(group.get("columns"))}<ol class="completions">{"".join(items)}</ol></article>'
    )


def _prompt(prompt: Any) -> str:
    """Shows a text, or the messages of a chat under the names of their roles."""
    if not isinstance(prompt, list):
        return box(str(prompt or ""), "prompt")
    parts = []
    for message in prompt:
        row = message if isinstance(message, dict) else {"content": message}
        text = _text(row.get("content"))
        parts.append(f'<div class="role">{escape(row.get("role", ""))}</div>{box(text, "prompt")}')
    return "".join(parts)


def _columns(columns: Any) -> str:
    """Shows the row's other columns, such as the reference answer."""
    if not isinstance(columns, dict) or not columns:
        return ""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{box(str(v))}</dd>" for k, v in columns.items())
    return f'<dl class="columns">{items}</dl>'


def _completions(group: Row) -> list[str]:
    """Returns one list item per completion, the best first."""
    texts = _list(group.get("completions"))
    rewards = group.get("rewards")
    by_name = rewards if isinstance(rewards, dict) else {}
    totals, advantages = _list(group.get("reward")), _list(group.get("advantages"))
    reasons = _list(group.get("finish_reasons"))
    order = sorted(range(len(texts)), key=lambda i: _value(totals, i, float("-inf")), reverse=True)
    items = []
    for i in order:
        parts = [f"<b>{_reward(_at(totals, i))}</b>"]
        if is_number(_at(advantages, i)):
            parts.append(_advantage(advantages[i]))
        if len(by_name) > 1:
            parts += [f"{escape(name)} {_shown(_at(_list(v), i))}" for name, v in by_name.items()]
        if _at(reasons, i) == "length":
            parts.append('<span class="cut">cut off</span>')
        parts += _extras(group.get("extras"), i)
        episode = _at(_list(group.get("episodes")), i)
        if isinstance(episode, dict):
            turns = episode.get("turns")
            parts.append(
                f"{turns} turn{'' if turns == 1 else 's'}, ended by {escape(episode.get('ending', ''))}"
            )
        meta = "".join(f"<span>{part}</span>" for part in parts)
        said = _episode(episode.get("messages")) if isinstance(episode, dict) else box(str(texts[i]))
        items.append(f'<li><div class="meta">{meta}</div>{said}</li>')
    return items


def _extras(extras: Any, i: int) -> list[str]:
    """Returns what reward functions have logged of completion `i`."""
    columns = extras if isinstance(extras, dict) else {}
    values = {name: _at(_list(logged), i) for name, logged in columns.items()}
    return [f"{escape(name)}: {escape(value)}" for name, value in values.items() if value is not None]


def _episode(messages: Any) -> str:
    """Shows an episode as a conversation. What the model wrote is trained, and is told apart from what it read."""
    parts = []
    for message in _list(messages):
        row = message if isinstance(message, dict) else {"content": message}
        role = str(row.get("role", ""))
        lines = [_text(row["reasoning_content"])] if row.get("reasoning_content") else []
        lines += [_text(row.get("content"))] if row.get("content") else []
        for call in _list(row.get("tool_calls")):
            function = call.get("function", {}) if isinstance(call, dict) else {}
            lines.append(f"{function.get('name')}({_text(function.get('arguments'))})")
        trained = role == "assistant"
        label = "assistant, trained" if trained else f"{escape(row.get('name') or role)}, read"
        parts.append(
            f'<div class="role">{label}</div>{box(chr(10).join(lines), "" if trained else "prompt")}'
        )
    return "".join(parts)


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _advantage(value: float) -> str:
    """Shows the advantage with its sign and a colour. The sign serves readers who cannot tell the colours apart."""
    css = "up" if value > 0 else "down" if value < 0 else "flat"
    return f'<span class="{css}">A {"+" if value > 0 else ""}{number(value)}</span>'


def _reward(value: Any) -> str:
    return f"reward {number(value)}" if is_number(value) else "no reward"


def _shown(value: Any) -> str:
    return number(value) if is_number(value) else "n/a"


def _mean(values: Any) -> float:
    """Returns the mean of the numbers among `values`; minus infinity where there is none."""
    numbers = [value for value in _list(values) if is_number(value)]
    return sum(numbers) / len(numbers) if numbers else float("-inf")


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _at(values: Sequence[Any], i: int) -> Any:
    return values[i] if i < len(values) else None


def _value(values: Sequence[Any], i: int, otherwise: float) -> float:
    value = _at(values, i)
    return float(value) if is_number(value) else otherwise
