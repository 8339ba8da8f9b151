"""Fixtures of the tests of data."""

from __future__ import annotations

import gzip
import json

import pytest


@pytest.fixture
def write(tmp_path):
    """write(*lines) -> the path of a dataset; a line is JSON text, bytes, or an object."""

    def write(*lines, name: str = "data.jsonl", pack: bool = False) -> str:
        texts = [line if isinstance(line, str | bytes) else json.dumps(line) for line in lines]
        data = b"".join((t.encode() if isinstance(t, str) else t) + b"\n" for t in texts)
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if pack else data)
        return str(path)

    return write
