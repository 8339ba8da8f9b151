"""Folders with splits, and datasets of the Hub."""

from __future__ import annotations

import pytest

from grpokit.data.folders import split_in
from grpokit.data.rows import describe_dataset, read_rows
from grpokit.data.sources import HELD_OUT, is_hub_name, open_dataset
from helpers.dataset_writing import contents, described, write
from helpers.refusals import refuses

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
        f"--dataset {tmp_path}: split train has files of CSV and JSON lines (train.csv, train.jsonl)",
    )


def test_a_split_of_a_single_file(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"prompt": "a"}])
    assert open_dataset(path, "--dataset", "train").split == "train"
    refuses(
        lambda: open_dataset(path, "--dataset", "test"), f"--dataset_split test: --dataset {path} is one file"
    )


# --------------------------------------------------------------------------- the Hub


def test_names_of_the_hub_are_told_from_paths(tmp_path, monkeypatch):
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
    assert "1 rows (the Hub, split train)" in describe_dataset(source, [row])
    assert contents(open_dataset("openai/gsm8k", "--eval_dataset", preferred=HELD_OUT))[0][0] == "test"
    assert contents(open_dataset("openai/gsm8k", "--dataset", "test"))[0][0] == "test"
    assert hub == [
        ("openai/gsm8k", "main", None),
        ("openai/gsm8k", None, None),
        ("openai/gsm8k", None, "test"),
    ]


def test_without_a_network_the_cache_is_read_at_once(hub, monkeypatch):
    import huggingface_hub
    from datasets import config

    asked = []

    def unreachable(self, name, timeout):
        asked.append((name, timeout))
        raise TimeoutError

    def load_dataset(name, config_name=None, **options):
        assert config.HF_HUB_OFFLINE
        assert huggingface_hub.constants.HF_HUB_OFFLINE
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    before = config.HF_HUB_OFFLINE
    refuses(lambda: open_dataset("some/thing", "--dataset"), "FileNotFoundError: not in the cache")
    assert asked == ([("some/thing", 10.0)] if not before else [])
    assert before == config.HF_HUB_OFFLINE


def test_a_dataset_that_the_hub_does_not_give(hub):
    refuses(
        lambda: open_dataset("some/thing", "--dataset"),
        "--dataset some/thing: no such file or folder, and the Hub's dataset of that name cannot be loaded",
        "ConnectionError: Couldn't reach 'some/thing' on the Hub",
        "expected a path, org/name or org/name:config",
    )
