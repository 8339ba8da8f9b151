"""Rows that are read by their number when a step needs them: the same rows, in the same order, as read at the start."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpokit.config.options import TrainConfig
from grpokit.data import addressed, lazy
from grpokit.data.addressed import FirstRows, ItemRows, LineRows
from grpokit.data.lazy import LazyPrompts
from grpokit.data.prompts import Prompts, row_at
from grpokit.data.rows import read_rows
from grpokit.data.sources import open_dataset
from grpokit.training.setup.lazily import lazy_rows, prompt_maker
from grpokit.training.setup.prompts import load_prompts
from helpers.chats import PLAIN
from helpers.dataset_writing import write as write_file
from helpers.refusals import refuses

ROWS = [{"prompt": f"{n} + {n} =", "answer": n} for n in range(230)]


def all_rows(rows) -> list:
    return [rows.row(number) for number in range(len(rows))]


# --------------------------------------------------------------------------- rows by their number


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_rows_by_their_number_are_those_read_in_order(tmp_path, kind, monkeypatch):
    path = tmp_path / f"data.{kind}"
    if kind == "arrow":
        pa = pytest.importorskip("pyarrow")
        table = pa.Table.from_pylist(ROWS)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=100)
    else:
        write_file(path, ROWS)
    if kind == "parquet":
        pytest.importorskip("datasets")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    source = open_dataset(path, "--dataset")
    assert source.addressed is not None
    assert all_rows(source.addressed()) == list(source.rows())


@given(
    lines=st.lists(
        st.sampled_from(['{"prompt": "a"}', ' {"prompt": "b"}\t', "", "  ", "\r", "{", "\ufeff{}"]),
        max_size=12,
    ),
    ends=st.booleans(),
    block=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_lines_are_found_in_any_blocks(tmp_path_factory, lines, ends, block):
    """Blank lines are no rows; a byte order mark, a missing last line end and bad rows are as in reading from the start."""
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_text("\n".join(lines) + "\n" * ends, newline="")
    source = open_dataset(path, "--dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(addressed, "BLOCK", block)
        found = all_rows(LineRows(path, "--dataset"))
    assert [(place, repr(values)) for place, values in found] == [(p, repr(v)) for p, v in source.rows()]


def test_a_folder_and_its_first_rows(tmp_path):
    for name, rows in (("train-0.jsonl", ROWS[:3]), ("train-1.jsonl", []), ("train-2.jsonl", ROWS[3:5])):
        write_file(tmp_path / name, rows)
    source = open_dataset(tmp_path, "--dataset")
    rows = source.addressed()
    assert all_rows(rows) == list(source.rows())
    assert all_rows(FirstRows(rows, 4)) == list(source.rows())[:4]
    assert len(FirstRows(rows, 9)) == 5


# --------------------------------------------------------------------------- prompts


def maker(longest: int = 12, **options):
    return prompt_maker(TrainConfig(**options), PLAIN, longest, None, "; or --skip_bad_rows")


def lazily(rows, longest: int = 12, seed: int = 7, shuffle: bool = True, **options) -> LazyPrompts:
    items = ItemRows(rows, "rows[{}]".format)
    return LazyPrompts(items, maker(longest, **options), longest, seed=seed, shuffle=shuffle)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_that_of_all_rows_in_memory(tmp_path, shuffle):
    path = write_file(tmp_path / "data.jsonl", ROWS)
    ours = LazyPrompts(LineRows(path, "--dataset"), maker(), 12, seed=7, shuffle=shuffle)
    theirs = Prompts(read_rows(path)[0], PLAIN, seed=7, shuffle=shuffle)
    assert [vars(p) for p in ours.take(0, 300)] == [vars(p) for p in theirs.take(0, 300)]
    assert [vars(p) for p in ours.in_order(9)] == [vars(p) for p in theirs.in_order(9)]
    assert vars(ours.by_row(229, 5)) == vars(theirs.by_row(229, 5))


BAD = [
    {"prompt": "a"},
    {"prompt": " "},
    {"no": 1},
    {"prompt": "x" * 40},
] * 10  # the first of four can be used


@given(position=st.integers(0, 10_000), seed=st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_a_row_that_is_left_out_makes_way_for_one_drawn_by_seed_and_position(position, seed):
    options = {"skip_bad_rows": True, "long_prompts": "drop"}
    first, second = (lazily(BAD, seed=seed, **options) for _ in range(2))
    second.take(position // 2, 3)  # what was read before changes nothing
    prompt = first.at(position)
    assert prompt.content == "a"
    assert prompt.position == position
    assert prompt.source == second.at(position).source


def test_the_rows_drawn_instead_differ():
    prompts = lazily(BAD, skip_bad_rows=True, long_prompts="drop")
    instead = [position for position in range(40) if row_at(position, 40, 7, True) % 4]
    assert len({prompts.at(position).source for position in instead}) > 5  # of 10


def test_a_bad_row_is_named_when_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "rows_to_check", lambda count, seed: [0])
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:9]) + "{bad\n")
    prompts = LazyPrompts(LineRows(path, "--dataset"), maker(), 12, shuffle=False, seed=1)
    prompts.take(0, 9)
    refuses(lambda: prompts.take(8, 2), f"{path}:10: not JSON", "or --skip_bad_rows")
    long = lazily([*ROWS[:9], {"prompt": "x" * 40}], shuffle=False, seed=1)
    refuses(lambda: long.at(9), "rows[9]: the prompt has 40 tokens, over 12", "--long_prompts")


def test_bad_rows_among_the_first_are_named_at_the_start():
    refuses(lambda: lazily([*ROWS[:3], {"no": 1}]), "rows[3]: no prompt")
    refuses(lambda: lazily([{"no": 1}], skip_bad_rows=True), "--dataset: no prompt is left")


def test_an_order_without_a_usable_row_ends(monkeypatch):
    monkeypatch.setattr(lazy, "REDRAWS", 3)
    monkeypatch.setattr(lazy, "CHECKED", 1)
    prompts = lazily([{"prompt": "a"}, *[{"no": 1}] * 10_000], skip_bad_rows=True, seed=3)
    refuses(lambda: prompts.at(5), "--dataset: 3 rows that were drawn for one prompt")


def test_a_token_without_a_row_in_the_model_is_named_when_it_is_read():
    prompts = lazily([{"prompt": "a"}, {"prompt": "b"}])
    known = max(prompts.at(0).ids) + 1
    prompts.check_ids(max(known, max(prompts.at(1).ids) + 1))
    refuses(lambda: prompts.check_ids(1), "has the token")
    refuses(lambda: prompts.at(0), "has the token")


# --------------------------------------------------------------------------- which datasets are read so


def test_auto_reads_large_files_lazily_and_small_ones_at_the_start(tmp_path, monkeypatch, capsys):
    path = str(write_file(tmp_path / "data.jsonl", ROWS))
    config = TrainConfig(dataset=path, max_prompt_length=12)
    load = lambda config: load_prompts(config, path, "--dataset", PLAIN, None)  # noqa: E731
    assert isinstance(load(config), Prompts)
    for name, limit in (("MANY", 229), ("LARGE", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(f"grpokit.training.setup.lazily.{name}", limit)
            assert isinstance(load(config), LazyPrompts)
            assert isinstance(load(TrainConfig(dataset=path)), Prompts)  # nothing bounds a prompt
            never = TrainConfig(dataset=path, max_prompt_length=12, lazy_tokenize="never")
            assert isinstance(load(never), Prompts)
    said = capsys.readouterr().out
    assert "230 rows (JSON lines)" in said
    assert "read when a step needs them: only" in said


def test_what_cannot_be_read_by_number_is_refused_where_that_was_asked_for(tmp_path):
    always = TrainConfig(lazy_tokenize="always", max_prompt_length=9)
    for name in ("data.jsonl.gz", "data.csv", "data.json"):
        source = open_dataset(write_file(tmp_path / name, ROWS[:3]), "--dataset")
        refuses(lambda source=source: lazy_rows(always, source, 9), "--lazy_tokenize always: --dataset", name)
        assert lazy_rows(TrainConfig(), source, 9) is None
    source = open_dataset(write_file(tmp_path / "data.jsonl", ROWS[:3]), "--dataset")
    refuses(lambda: lazy_rows(always, source, None), "set --max_prompt_length")
