"""Models by their names on the Hub, from a cache laid out as huggingface_hub lays it out, without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from grpokit.commands.cli import main
from grpokit.common.hub import is_hub_model, model_directory
from helpers.launch import rows
from helpers.places import REWARDS
from helpers.tiny import ROWS, make_model_dir, write_rows


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put(cache: Path, name: str, directory: Path, revision: str = "main", commit: str = "0123abcd") -> None:
    """A model in the cache: refs/REVISION names the commit, whose snapshot has the files."""
    repo = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(directory, repo / "snapshots" / commit)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / revision).write_text(commit)


def data_flags(file: Path) -> list[str]:
    """Writes rows to `file`; returns the flags of these rows and their reward."""
    return ["--dataset", str(write_rows(file, ROWS)), "--reward_funcs", f"{REWARDS}:digits_in_order"]


def test_names_of_the_hub_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_model("org/name")
    assert is_hub_model("org/name@v1.0")
    for name in ("name", "./name", "/org/name", "a/b/c", "org/", "org/name@"):
        assert not is_hub_model(name), name
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert not is_hub_model("org/name")


def test_a_run_from_the_cache_has_the_bytes_of_the_directory(cache, tmp_path):
    model = make_model_dir(tmp_path / "model")
    put(cache, "tiny/digits", model)
    flags = [*data_flags(tmp_path / "train.jsonl"), "--max_steps", "2", "--beta", "0.1"]
    flags += ["--prompts_per_step", "2", "--num_generations", "2", "--max_completion_length", "6"]
    for name, of in (("named", "tiny/digits"), ("path", str(model))):
        assert main(["train", "--model", of, *flags, "--output_dir", str(tmp_path / name)]) == 0
    assert rows(tmp_path / "named", "metrics.jsonl") == rows(tmp_path / "path", "metrics.jsonl")


def test_a_revision_is_its_own_model(cache, tmp_path):
    put(cache, "tiny/two", make_model_dir(tmp_path / "a"), commit="aaaa")
    put(cache, "tiny/two", make_model_dir(tmp_path / "b", seed=1), revision="v2", commit="bbbb")
    assert Path(model_directory("tiny/two", "--model")).name == "aaaa"
    assert Path(model_directory("tiny/two@v2", "--model")).name == "bbbb"


def test_an_adapter_whose_base_is_of_the_hub(cache, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from grpokit.policy.load import load_tokenizer

    put(cache, "tiny/base", make_model_dir(tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "adapter"
    )
    load_tokenizer(str(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "tiny/base"}))
    flags = [*data_flags(tmp_path / "eval.jsonl"), "--max_completion_length", "6"]
    assert main(["eval", "--model", str(tmp_path / "adapter"), *flags, "--num_generations", "2"]) == 0


def test_what_the_cache_lacks_is_named_at_once(cache, tmp_path, capsys):
    flags = [*data_flags(tmp_path / "train.jsonl"), "--output_dir", str(tmp_path / "run")]
    assert main(["train", "--model", "nobody/nothing", *flags]) == 2
    error = capsys.readouterr().err
    assert (
        "--model nobody/nothing: no such directory, and not in the Hub's cache (HF_HUB_OFFLINE is set)"
        in error
    )
    assert "Traceback" not in error
