"""Rows of every kind of file, the shapes that are recognised, and the system prompt."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from grpokit.data.form import PromptForm
from grpokit.data.prompts import Prompts
from grpokit.data.rows import DatasetRow, read_rows
from helpers.chats import CHAT, PLAIN, assistant, rows_of, text_of, user
from helpers.dataset_writing import contents, described, write
from helpers.refusals import refuses

TABLE = [{"prompt": "2 + 2 =", "answer": "4"}, {"prompt": 'say "a,b"\nand c', "answer": None}]
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [user("How many?")],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"split": "train", "index": 0},
}


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    path = write(tmp_path / name, TABLE)
    assert contents(path) == [(row["prompt"], {"answer": row["answer"]}) for row in TABLE]


def test_places_are_lines_of_the_file(tmp_path):
    lines = write(tmp_path / "a.csv", [*TABLE, {"prompt": "c", "answer": "1"}])
    # The second row goes over lines 3 and 4.
    assert [row.source for row in read_rows(lines)[0]] == [f"{lines}:2", f"{lines}:3", f"{lines}:5"]
    array = tmp_path / "a.json"
    array.write_text('\n[{"prompt": "a"},\n\n {"prompt":\n "b"}\n,{"prompt": "c"}]\n')
    assert [row.source for row in read_rows(array)[0]] == [f"{array}:2", f"{array}:4", f"{array}:6"]
    table = write(tmp_path / "a.parquet", TABLE)
    assert [row.source for row in read_rows(table)[0]] == [f"{table}:1", f"{table}:2"]


def test_a_json_file_may_hold_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\n{"prompt": "a"}\n{"prompt": "b"}\n')
    assert [row.source for row in read_rows(path)[0]] == [f"{path}:2", f"{path}:3"]


@pytest.mark.parametrize("text", ["[]", " [ ] \n"])
def test_an_empty_array_is_an_empty_dataset(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    refuses(lambda: read_rows(path), f"--dataset {path}: is empty")


BAD_ARRAYS = {
    "cut off": ('[{"prompt": "a"},\n{"prompt": ', ":2: not a JSON array (Expecting value)"),
    "no comma": ('[{"prompt": "a"}\n\n{"prompt": "b"}]', ":3: not a JSON array (Expecting ',' or the end)"),
    "never closed": ('[{"prompt": "a"}\n', "not a JSON array (Expecting ',' or the end)"),
    "a comma at the end": ('[{"prompt": "a"},\n]', ":2: not a JSON array"),
    "more after it": ('[{"prompt": "a"}]\n{"prompt": "b"}', "not a JSON array"),
    "NaN": (
        '[{"prompt": "a"},\n{"prompt": "b", "x": NaN}]',
        ":2: not a JSON array (NaN is not a JSON number",
    ),
    "half a pair": ('[{"prompt": "\\ud800"}]', ":1: not a JSON array", "surrogates"),
    "bad UTF-8": (b'[{"prompt": "a"},\n{"prompt": "\xff"}]', ":2: not Unicode text (invalid start byte)"),
    "deep": ("[" * 100_000, ":1: not a JSON array"),
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_a_broken_array_names_the_line(tmp_path, kind, skip):
    """Also when bad rows are skipped: what follows can't be told apart any more."""
    text, *parts = BAD_ARRAYS[kind]
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refuses(lambda: read_rows(path, skip), str(path), *parts)


def test_a_bad_element_of_an_array_is_a_bad_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"prompt": "a"},\n7,\n{"prompt": "b"}]')
    refuses(lambda: read_rows(path), f"{path}:2: the row is 7", "--skip_bad_rows")
    rows, skipped = read_rows(path, skip_bad_rows=True)
    assert ([row.content for row in rows], len(skipped)) == (["a", "b"], 1)


def test_faults_of_a_csv_name_their_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer\na,1\nb\nc,2,3\nd,4\n\n,5\n")
    refuses(lambda: read_rows(path), f"{path}:3: 1 cells; expected 2, one for each column", "--skip_bad_rows")
    rows, skipped = read_rows(path, skip_bad_rows=True)
    assert [row.content for row in rows] == ["a", "d"]
    assert [message.removeprefix(str(path))[:3] for message in skipped] == [":3:", ":4:", ":7:"]
    path.write_text("prompt,prompt\na,b\n")
    refuses(lambda: read_rows(path), f"{path}:1: two columns have one name")
    path.write_bytes(b"prompt\na\n\xff\n")
    refuses(lambda: read_rows(path), f"{path}:3: not UTF-8 (invalid start byte)")
    path.write_text('prompt\n"a\n')
    refuses(lambda: read_rows(path), f"{path}: not CSV to its end")
    path.write_text("")
    refuses(lambda: read_rows(path), f"--dataset {path}: is empty")


def test_a_csv_of_windows_and_a_long_cell(tmp_path):
    path, limit = tmp_path / "a.csv", csv.field_size_limit()
    path.write_bytes(b"\xef\xbb\xbfprompt,answer\r\n" + b"a" * 200_000 + b",1\r\n")
    ((content, columns),) = contents(path)
    assert (len(content), columns, csv.field_size_limit()) == (200_000, {"answer": "1"}, limit)


def test_faults_of_parquet_name_their_row(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("no such thing")
    refuses(lambda: read_rows(path), f"--dataset {path}: cannot be read as Parquet")
    refuses(
        lambda: read_rows(tmp_path / "b.parquet"),
        f"--dataset {tmp_path}/b.parquet: cannot be read",
        "No such",
    )


def test_what_parquet_has_and_json_has_not(tmp_path):
    rows = [{"prompt": "a", "x": 1.5}, {"prompt": "b", "x": float("nan")}, {"prompt": "c", "x": float("inf")}]
    path = write(tmp_path / "a.parquet", rows)
    refuses(lambda: read_rows(path), f"{path}:3: inf is not a number that JSON has")
    done, _ = read_rows(path, skip_bad_rows=True)
    assert [row.columns["x"] for row in done] == [1.5, None]


def test_text_of_parquet_that_is_not_utf8_names_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    raw = pyarrow.array([b"fine", b"\xff", b"fine too"], pyarrow.binary())
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, raw.buffers())
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": texts}), path)
    refuses(lambda: read_rows(path), f"{path}:2: ", "invalid start byte")
    assert [row.content for row in read_rows(path, skip_bad_rows=True)[0]] == ["fine", "fine too"]


@pytest.mark.parametrize("package", ["pyarrow", "datasets"])
def test_a_missing_package_says_how_to_install_it(tmp_path, monkeypatch, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    name = str(tmp_path / "a.parquet") if package == "pyarrow" else "some/name"
    refuses(lambda: read_rows(name), f"--dataset {name}: ", package, "pip install grpokit[datasets]")


# --------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_rows_of_verls_shape_are_recognised(tmp_path, name):
    path = write(tmp_path / name, [VERL])
    ((content, columns),) = contents(path)
    assert content == [user("How many?")]
    assert columns["ground_truth"] == "72"
    assert (columns["data_source"], columns["extra_info"]["index"]) == ("openai/gsm8k", 0)
    assert "verl's shape, `prompt` is a chat, reward_model.ground_truth is `ground_truth`" in described(path)


def test_a_ground_truth_of_its_own_stays(tmp_path):
    """Beside verl's; a `reward_model` that is something else is a column like any other."""

    def columns(**values):
        (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", **values}))
        return contents(tmp_path / "a.jsonl")[0][1]

    assert columns(reward_model={"ground_truth": "1"}, ground_truth="2")["ground_truth"] == "2"
    assert columns(reward_model={"ground_truth": "1"}, ground_truth=None)["ground_truth"] == "1"
    assert columns(reward_model="rm-7b") == {"reward_model": "rm-7b"}
    assert columns(reward_model={"style": "model"}) == {"reward_model": {"style": "model"}}


def test_the_line_at_the_start_says_what_was_recognised(tmp_path):
    swift = write(tmp_path / "s.jsonl", [{"messages": [user("q"), assistant("a")], "solution": "4"}])
    assert described(swift) == (
        f"--dataset {swift}: 1 rows (JSON lines); `messages`, as in ms-swift; columns: solution"
    )
    mixed = write(tmp_path / "m.jsonl", [{"prompt": "a"}, {"prompt": [user("b")]}, {"prompt": [user("c")]}])
    assert "`prompt` is text, as in TRL (1 rows); `prompt` is a chat, as in TRL (2 rows)" in described(mixed)
    assert "columns: none beside the prompt" in described(mixed)
    question = write(tmp_path / "train.csv", [{"question": "a", "answer": "b"}])
    assert "(CSV, split train); `question`, a user's message" in described(question)


def test_fields_that_are_null_are_no_fields(tmp_path):
    """Parquet gives every message every field that any of them has; a template may test for its presence."""
    path = write(tmp_path / "a.parquet", [{"messages": [{**user("a"), "name": "x"}, user("b")]}])
    ((content, _),) = contents(path)
    assert content == [{**user("a"), "name": "x"}, user("b")]


@pytest.mark.parametrize("column", ["completions", "prompts", "completion_ids"])
def test_a_column_that_hides_an_argument_names_file_and_line(tmp_path, column):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b", column: 1}])
    refuses(lambda: read_rows(path), f"{path}:2: the column `{column}` hides", "rename it")


def test_a_limit_reads_the_first_rows_and_no_further(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\nbad\n{"prompt": "b"}\nbad too\n{"prompt": "c"}\n')
    rows, skipped = read_rows(path, skip_bad_rows=True, limit=2)
    assert ([row.content for row in rows], len(skipped)) == (["a", "b"], 1)
    assert [row.content for row in read_rows(path, limit=1)[0]] == ["a"]


# --------------------------------------------------------------------------- the system prompt


def test_a_system_prompt_comes_before_chats_that_have_none():
    system = {"role": "system", "content": "own"}
    rows = [
        DatasetRow([user("a")], {}, "t:1", "messages"),
        DatasetRow([system, user("a")], {}, "t:2", "messages"),
        DatasetRow("a", {}, "t:3", "question", asks=True),
        DatasetRow("a", {}, "t:4", "prompt"),
    ]
    prompts = Prompts(rows, CHAT, form=PromptForm(system_prompt="be brief")).in_order()
    ours = "<system>be brief\n<user>a\n<assistant>"
    assert [text_of(prompt, CHAT) for prompt in prompts] == [
        ours,
        "<system>own\n<user>a\n<assistant>",
        ours,
        "a",
    ]
    assert prompts[0].content == [{"role": "system", "content": "be brief"}, user("a")]


def test_a_system_prompt_that_nothing_would_have_is_refused():
    refuses(
        lambda: Prompts(rows_of("a"), PLAIN, form=PromptForm(system_prompt="be brief")),
        "--system_prompt 'be brief': no prompt of --dataset is a chat",
    )
