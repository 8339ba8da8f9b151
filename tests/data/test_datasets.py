"""Where rows come from: every kind of file, folders with splits, the Hub; and what is said of them and of their faults."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys
from pathlib import Path

import pytest

from grpokit.cli import main
from grpokit.dataset_files import HELD_OUT, is_hub_name, open_dataset, split_in
from grpokit.overlay import to_yaml
from grpokit.prompts import Prompts
from grpokit.rows import DatasetRow, read_rows, recognised
from helpers.chats import CHAT, PLAIN, assistant, rows_of, text_of, user
from helpers.refusals import refuses
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows

TABLE = [{"prompt": "2 + 2 =", "answer": "4"}, {"prompt": 'say "a,b"\nand c', "answer": None}]
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [user("How many?")],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "72"},
    "extra_info": {"split": "train", "index": 0},
}


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


def test_faults_of_a_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,answer\na,1\nb\nc,2,3\nd,4\n\n,5\n")
    refuses(lambda: read_rows(path), f"{path}:3: 1 cells; expected 2, one for each column", "--skip_bad_rows")
    rows, skipped = read_rows(path, skip_bad_rows=True)
    assert [row.content for row in rows] == ["a", "d"]
    assert [message.removeprefix(str(path))[:3] for message in skipped] == [":3:", ":4:", ":7:"]
    path.write_text("prompt,prompt\na,b\n")
    refuses(lambda: read_rows(path), f"{path}:1: two columns of one name")
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


def test_faults_of_parquet(tmp_path):
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


def described(path) -> str:
    source = open_dataset(path, "--dataset")
    return recognised(source, read_rows(source)[0])


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_verls_shape(tmp_path, name):
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


# --------------------------------------------------------------------------- folders and splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00002.parquet", "train"),
        ("gsm8k_test.csv", "test"),
        ("eval.jsonl.gz", "test"),
        ("dev-0.json", "validation"),
        ("Validation.jsonl", "validation"),
        ("trainer.jsonl", ""),
        ("contest.jsonl", ""),
        ("data.train", ""),
    ],
)
def test_the_split_of_a_filename(name, split):
    assert split_in(name) == split


def test_a_folder_has_splits(tmp_path):
    for name, text in [
        ("train-0.jsonl", "a"),
        ("train-1.jsonl", "b"),
        ("test.parquet", "c"),
        ("infos.json", "x"),
    ]:
        write(tmp_path / name, [{"prompt": text}])
    (tmp_path / "README.md").write_text("not data")
    assert [row for row, _ in contents(tmp_path)] == ["a", "b"]
    held_out = open_dataset(tmp_path, "--eval_dataset", preferred=HELD_OUT)
    assert [row for row, _ in contents(held_out)] == ["c"]
    assert [row for row, _ in contents(open_dataset(tmp_path, "--dataset", "test"))] == ["c"]
    line = described(tmp_path)
    assert "2 rows (2 files of JSON lines, split train)" in line
    assert line.endswith("not read, as no split is in their names: infos.json")
    refuses(
        lambda: open_dataset(tmp_path, "--dataset", "tset"),
        "--dataset_split tset: no such split (did you mean 'test'?)",
        f"--dataset {tmp_path} has test, train",
    )
    refuses(lambda: open_dataset(tmp_path, "--eval_dataset", "dev"), "--eval_split dev: no such split")


def test_a_folder_whose_only_split_is_another_and_one_without_any(tmp_path):
    write(tmp_path / "test.jsonl", [{"prompt": "a"}])
    assert [row for row, _ in contents(tmp_path)] == ["a"]
    write(tmp_path / "dev.jsonl", [{"prompt": "a"}])
    refuses(
        lambda: open_dataset(tmp_path, "--dataset"), "--dataset_split: which one?", "has test, validation"
    )
    plain = tmp_path / "plain"
    (plain / "data").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl"):
        write(plain / "data" / name, [{"prompt": name}])
    assert [row for row, _ in contents(plain)] == ["a.jsonl", "b.jsonl"]


def test_a_split_in_two_kinds_of_files_is_not_read_twice(tmp_path):
    for name in ("train.jsonl", "train.csv"):
        write(tmp_path / name, [{"prompt": "a"}])
    refuses(
        lambda: open_dataset(tmp_path, "--dataset"),
        f"--dataset {tmp_path}: split train is there as CSV and JSON lines (train.csv, train.jsonl)",
    )


def test_a_split_of_a_single_file(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"prompt": "a"}])
    assert open_dataset(path, "--dataset", "train").split == "train"
    refuses(
        lambda: open_dataset(path, "--dataset", "test"), f"--dataset_split test: --dataset {path} is one file"
    )


# --------------------------------------------------------------------------- the Hub


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["openai/gsm8k", "openai/gsm8k:main", "HuggingFaceH4/MATH-500"]
    paths = [
        "gsm8k",
        "nowhere.jsonl",
        "data/train.jsonl",
        "data/train.json.gz",
        "../x/y",
        "/a/b",
        "a/b/c",
        "a/b:c:d",
    ]
    assert [name for name in (*names, *paths) if is_hub_name(name)] == names
    (tmp_path / "openai" / "gsm8k").mkdir(parents=True)
    assert not is_hub_name("openai/gsm8k")


@pytest.fixture
def hub(monkeypatch):
    """`datasets.load_dataset` with one dataset that has two splits, and its calls."""
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` isn't installed")
    calls = []

    def load_dataset(name, config=None, split=None):
        calls.append((name, config, split))
        if name != "openai/gsm8k":
            raise ConnectionError(f"Couldn't reach {name!r}\non the Hub")
        found = datasets.DatasetDict(
            {s: datasets.Dataset.from_list([{"question": s, "answer": "#### 4"}]) for s in ("train", "test")}
        )
        return found[split] if split else found

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_a_dataset_of_the_hub(hub):
    source = open_dataset("openai/gsm8k:main", "--dataset")
    (row,), _ = read_rows(source)
    assert (row.content, row.columns, row.source) == (
        "train",
        {"answer": "#### 4"},
        "openai/gsm8k:main train:1",
    )
    assert "1 rows (the Hub, split train)" in recognised(source, [row])
    assert contents(open_dataset("openai/gsm8k", "--eval_dataset", preferred=HELD_OUT))[0][0] == "test"
    assert contents(open_dataset("openai/gsm8k", "--dataset", "test"))[0][0] == "test"
    assert hub == [
        ("openai/gsm8k", "main", None),
        ("openai/gsm8k", None, None),
        ("openai/gsm8k", None, "test"),
    ]


def test_a_dataset_that_the_hub_does_not_give(hub):
    refuses(
        lambda: open_dataset("some/thing", "--dataset"),
        "--dataset some/thing: no such file or folder, and the Hub's dataset of that name cannot be had",
        "ConnectionError: Couldn't reach 'some/thing' on the Hub",
        "expected a path, org/name or org/name:config",
    )


# --------------------------------------------------------------------------- the system prompt


def test_a_system_prompt_comes_before_chats_that_have_none():
    system = {"role": "system", "content": "own"}
    rows = [
        DatasetRow([user("a")], {}, "t:1", "messages"),
        DatasetRow([system, user("a")], {}, "t:2", "messages"),
        DatasetRow("a", {}, "t:3", "question"),
        DatasetRow("a", {}, "t:4", "prompt"),
    ]
    prompts = Prompts(rows, CHAT, system_prompt="be brief").in_order()
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
        lambda: Prompts(rows_of("a"), PLAIN, system_prompt="be brief"),
        "--system_prompt 'be brief': no prompt of --dataset is a chat",
    )


# --------------------------------------------------------------------------- the command line


def test_a_run_on_a_folder_says_what_it_reads(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "train.csv", ROWS)
    write(data / "test.parquet", ROWS[:3])
    config = tiny_config(
        tmp_path, dataset=str(data), eval_dataset=str(data), max_samples=4, max_steps=1, eval_samples=2
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert (
        f"--dataset {data}: 4 rows (CSV, split train); `prompt` is text, as in TRL; columns: answer" in said
    )
    assert f"--eval_dataset {data}: 3 rows (Parquet, split test)" in said
    assert "rewards: digits_in_order (TRL's signature)" in said
    completions = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in completions} == {
        f"{data}/train.csv:{line}" for line in (2, 3, 4, 5)
    }
    final = str(tmp_path / "run" / "final")
    flags = ["--reward_funcs", "exact_match", "--num_generations", "2", "--max_completion_length", "6"]
    assert main(["eval", "--model", final, "--dataset", str(data), "--max_samples", "2", *flags]) == 0
    assert "2 rows (Parquet, split test)" in capsys.readouterr().out


def test_what_is_on_the_command_line_is_refused_before_anything_loads(tmp_path, capsys):
    config = tiny_config(tmp_path)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    for flags, words in [
        (["--dataset_split", "test"], "--dataset_split test: --dataset"),
        (["--max_samples", "-1"], "--max_samples -1: must be 0 or more"),
        (["--eval_dataset", "no/thing.jsonl"], "--eval_dataset no/thing.jsonl: no such file"),
        (["--system_prompt", "hi"], "--system_prompt 'hi': no prompt of --dataset is a chat"),
        (["--reward_timeout", "-1"], "--reward_timeout -1.0: must be 0 or more"),
    ]:
        assert main(["train", "--config", str(tmp_path / "run.yaml"), *flags]) == 2
        assert words in capsys.readouterr().err


# --------------------------------------------------------------------------- inspect-data


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """sort_digits' tokenizer with a chat template that uses a special token."""
    path = make_model_dir(tmp_path_factory.mktemp("chat") / "model")
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ eos_token }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    return path


def test_inspect_data_shows_rows_as_the_model_sees_them(tmp_path, chat_model, capsys):
    rows = [{"messages": [user("31")], "solution": "13"}, {"messages": [user("254")], "solution": "245"}]
    path = write(tmp_path / "a.jsonl", rows)
    assert main(["inspect-data", str(path), "--model", str(chat_model), "--max_prompt_length", "4"]) == 0
    said = capsys.readouterr().out
    from grpokit.pretrained import load_tokenizer

    eos = load_tokenizer(str(chat_model)).eos_token
    assert f"{eos}31=" in said  # the template was applied, and the special token is there to be seen
    assert "`messages`, as in ms-swift" in said
    assert "─ a.jsonl:1, 4 tokens ─" in said
    assert re.search(r"│\s+4 │\s+4 │\s+5 │\s+5 │", said)  # min, median, p95, max of 4 and 5
    assert "1 rows are longer than --max_prompt_length 4" in said
    assert f"  {path}:2: 5 tokens" in said


def test_inspect_data_says_what_is_malformed_and_why(tmp_path, capsys):
    path = write_rows(tmp_path / "a.jsonl", [ROWS[0], "half a {", {"prompt": ""}, *ROWS[1:]])
    assert main(["inspect-data", str(path), "--rows", "1"]) == 1
    said = capsys.readouterr().out
    assert "2 rows are malformed" in said
    assert f"{path}:2: not JSON (Expecting value at character 1)" in said
    assert f'{path}:3: `prompt` is ""' in said
    assert "length of 10 prompts in characters" in said
    assert re.search(r"answer\s+│\s+10 │ str", said)


def test_inspect_data_names_what_is_not_there(tmp_path, capsys):
    assert main(["inspect-data", str(tmp_path / "no.jsonl")]) == 2
    assert "inspect-data" in capsys.readouterr().err
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    assert main(["inspect-data", str(path), "--model", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
