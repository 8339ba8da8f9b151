"""Folders as the Hub and `datasets` lay them out: metadata beside data, configurations, and what save_to_disk wrote."""

from __future__ import annotations

import json
import sys

import pytest

from grpokit.data.sources import HELD_OUT, is_hub_name, open_dataset
from helpers.dataset_writing import contents, described, write
from helpers.refusals import refuses

INFOS = {"default": {"description": "", "splits": {"train": {"num_examples": 1}}}}


def rows(*texts: str) -> list[dict[str, str]]:
    return [{"prompt": text} for text in texts]


def prompts(data) -> list:
    return [content for content, _ in contents(data)]


@pytest.mark.parametrize("metadata", ["dataset_infos.json", "config.json", "croissant.json", "anything.json"])
def test_what_lies_beside_data_is_not_the_data(tmp_path, metadata):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.parquet", rows("a"))
    (tmp_path / metadata).write_text(json.dumps(INFOS, indent=2))
    (tmp_path / "README.md").write_text("# About\n")
    assert prompts(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "metadata", ["dataset_infos.json", "dataset_info.json", "state.json", "config.json", "_a.json"]
)
def test_metadata_among_files_without_a_split_is_not_data(tmp_path, metadata):
    write(tmp_path / "rows.jsonl", rows("a"))
    (tmp_path / metadata).write_text(json.dumps(INFOS))
    assert prompts(tmp_path) == ["a"]


def test_a_file_of_a_metadata_name_is_data_where_there_is_nothing_else(tmp_path):
    write(tmp_path / "metadata.json", rows("a"))
    assert prompts(tmp_path) == ["a"]
    assert prompts(tmp_path / "metadata.json") == ["a"]


def test_folders_that_are_named_as_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write(tmp_path / split / "0000.parquet", rows(split))
    assert prompts(tmp_path) == ["train"]
    assert prompts(open_dataset(tmp_path, "--eval_dataset", preferred=HELD_OUT)) == ["test"]


# --------------------------------------------------------------------------- configurations


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot with two configurations, each a folder, as openai/gsm8k has them."""
    for config in ("main", "socratic"):
        (tmp_path / "snap" / config).mkdir(parents=True)
        for split in ("train", "test"):
            write(tmp_path / "snap" / config / f"{split}-00000-of-00001.parquet", rows(f"{config} {split}"))
    return tmp_path / "snap"


def test_a_configuration_is_a_folder(snapshot):
    assert prompts(f"{snapshot}:socratic") == ["socratic train"]
    assert prompts(open_dataset(f"{snapshot}:main", "--dataset", "test")) == ["main test"]
    refuses(
        lambda: open_dataset(snapshot, "--dataset"),
        f"--dataset {snapshot}: a folder of 2 configurations; name one, such as --dataset {snapshot}:main",
        "there are main, socratic",
    )
    refuses(
        lambda: open_dataset(f"{snapshot}:mian", "--dataset"),
        f"--dataset {snapshot}:mian: no such configuration (did you mean 'main'?)",
    )


def test_the_only_configuration_needs_no_name(tmp_path):
    (tmp_path / "main").mkdir()
    write(tmp_path / "main" / "train.jsonl", rows("a"))
    assert prompts(tmp_path) == ["a"]


def test_a_configuration_that_the_readme_declares(tmp_path):
    (tmp_path / "files").mkdir()
    for name in ("one.jsonl", "two.jsonl", "three.jsonl"):
        write(tmp_path / "files" / name, rows(name))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: files/o*\n"
        "  - split: test\n    path: [files/two.jsonl]\n- config_name: all\n  data_files: files/*.jsonl\n---\n# About\n"
    )
    assert prompts(f"{tmp_path}:small") == ["one.jsonl"]
    assert prompts(open_dataset(f"{tmp_path}:small", "--dataset", "test")) == ["two.jsonl"]
    assert prompts(f"{tmp_path}:all") == ["one.jsonl", "three.jsonl", "two.jsonl"]


def test_a_folder_and_its_configuration_are_no_name_of_the_hub(snapshot, monkeypatch):
    monkeypatch.chdir(snapshot.parent.parent)
    name = f"{snapshot.parent.name}/snap:main"
    assert not is_hub_name(name)
    assert prompts(name) == ["main train"]


# --------------------------------------------------------------------------- saved to disk


def test_a_dataset_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the extra `datasets` isn't installed")
    table = datasets.Dataset.from_list([{"prompt": f"{n}", "answer": [n, None]} for n in range(5)])
    table.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert contents(tmp_path / "one") == [(f"{n}", {"answer": [n, None]}) for n in range(5)]
    assert "5 rows (saved by datasets, split train)" in described(tmp_path / "one")
    table.select([3, 1]).save_to_disk(str(tmp_path / "some"))  # with a list of indices
    assert prompts(tmp_path / "some") == ["3", "1"]
    both = datasets.DatasetDict({"train": table, "held_out": table.select([0])})
    both.save_to_disk(str(tmp_path / "dict"))
    assert len(prompts(tmp_path / "dict")) == 5
    assert prompts(open_dataset(tmp_path / "dict", "--dataset", "held_out")) == ["0"]
    shard = next((tmp_path / "one").glob("*.arrow"))
    assert prompts(shard) == ["0", "1", "2"]


def test_a_saved_dataset_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data-0.arrow"}], "_split": null}')
    (tmp_path / "data-0.arrow").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refuses(
        lambda: contents(tmp_path),
        "data-0.arrow: Arrow is read by the package pyarrow, which isn't installed; pip install grpokit[datasets]",
    )


def test_a_damaged_arrow_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "train.arrow").write_bytes(b"not a table at all")
    refuses(lambda: contents(tmp_path), f"--dataset {tmp_path / 'train.arrow'}: cannot be read as Arrow")
