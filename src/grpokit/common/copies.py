"""Copies of what users may edit: lists and dicts at any depth. Text and numbers are shared, since nobody can edit them."""

from __future__ import annotations

import copy
from typing import Any

ATOMS = frozenset({str, int, float, bool, bytes, complex, type(None)})  # never edited, so never copied


def own_copy(value: Any) -> Any:
    """Copies a row's value so that editing the copy cannot reach the original.

    It is `copy.deepcopy` for plain data, without its bookkeeping: a list of a million numbers takes milliseconds. An object
    that refuses to be copied is shared.

    Example:
        >>> chat = [{"role": "user", "content": "2+2="}]
        >>> own_copy(chat)[0].pop("content"), chat
        ('2+2=', [{'role': 'user', 'content': '2+2='}])
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is list:
        return value[:] if ATOMS.issuperset(map(type, value)) else [own_copy(item) for item in value]
    if kind is dict:
        return {name: own_copy(item) for name, item in value.items()}
    if kind is tuple:
        return tuple(own_copy(item) for item in value)
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - objects of users raise what they like
        return value
