"""Datasets in any kind of file, and their rows read back."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from grpokit.data.rows import describe_dataset, read_rows
from grpokit.data.sources import open_dataset


def write(path: Path, rows: list) -> Path:
    """`rows` in the kind that the path's ending says, gzipped where it ends in .gz."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        parquet = pytest.importorskip(
            "pyarrow.parquet", reason="pyarrow (the extra `datasets`) isn't installed"
        )
        parquet.write_table(_arrow(rows), path)
        return path
    if kind in ("csv", "tsv"):
        plain = path.with_name("plain")
        with plain.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
        data = plain.read_bytes()
        plain.unlink()
    elif kind == "json":
        data = json.dumps(rows, indent=1).encode()
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _arrow(rows: list):
    import pyarrow

    return pyarrow.Table.from_pylist(rows)


def contents(data) -> list[tuple]:
    return [(row.content, dict(row.columns)) for row in read_rows(data)[0]]


def described(path) -> str:
    source = open_dataset(path, "--dataset")
    return describe_dataset(source, read_rows(source)[0])
