"""The card beside the weights of final/ and best/, and the upload of final/ to the Hub."""

from __future__ import annotations

import re
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml

import grpokit
import grpokit.runs.report
from grpokit.commands.cli import main
from grpokit.common.push import check_push, reason_of
from grpokit.config.checks import check_train_config
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import to_yaml
from grpokit.parallel import World
from grpokit.runs.card import ModelCard, public_settings
from grpokit.runs.report.curve import draw_reward_curve
from grpokit.training.publish import publish
from helpers.fake_hub import TOKEN, fake_hub
from helpers.places import REWARDS
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows


@pytest.fixture
def hub(tmp_path):
    """A Hub that takes uploads."""
    with fake_hub(tmp_path) as found:
        yield found


def parts_of(card: str) -> tuple[dict, str]:
    """Returns a card's front matter and its text."""
    _, front, text = card.split("---\n", 2)
    return yaml.safe_load(front), text


def settings_in(text: str) -> dict:
    """Returns the settings that a card shows."""
    return yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1])


def test_a_run_writes_its_card_uploads_it_and_writes_the_same_when_it_is_resumed(
    tmp_path, hub, capsys, monkeypatch
):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(grpokit.runs.report, "reward_curve", draw_reward_curve)
    make_model_dir(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# Another's card\n")
    held_out = str(write_rows(tmp_path / "eval.jsonl", ROWS[:4]))
    config = tiny_config(
        tmp_path,
        eval_dataset=held_out,
        eval_steps=1,
        save_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        push_to_hub="me/sorter",
        hub_private_repo=True,
        hub_revision="v2",
        seed=1,
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command, run = ["train", "--config", str(tmp_path / "run.yaml")], tmp_path / "run"
    hub.branches["me/sorter", "main"] = {
        ".gitattributes": b"",
        "model-00001-of-00002.safetensors": b"",
        "notes.txt": b"mine",
    }
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"uploaded: {hub.endpoint}/me/sorter/tree/v2" in said

    front, text = parts_of((run / "final" / "README.md").read_text())
    assert front == {
        "library_name": "transformers",
        "model_name": "sorter",
        "pipeline_tag": "text-generation",
        "tags": ["grpo", "reinforcement-learning", "grpokit", "dapo"],
    }
    assert "* `train.jsonl`: 10 rows" in text
    assert r"w_i = \frac{1}{\sum_j T_j} $$" in text
    assert '.from_pretrained("me/sorter")' in text
    assert re.search(r"\| reward, `eval/reward` \| 0\.\d{3} \| 0\.\d{3} \|", text)
    assert "| sampled accuracy (pass@1), `eval/pass@1` | 0.000 ± 0.000 | 0.000 ± 0.000 |" in text
    assert "ci95" not in text
    shown = settings_in(text)
    assert shown["dataset"] == ["train.jsonl"]
    assert shown["reward_funcs"] == ["reward_functions.py:digits_in_order"]
    assert not {"output_dir", "push_to_hub", "save_steps"} & shown.keys()
    assert "Another's" not in text
    assert ElementTree.parse(run / "final" / "reward.svg").getroot().tag.endswith("svg")
    written = {
        name: (run / name).read_bytes() for name in ("final/README.md", "final/reward.svg", "best/README.md")
    }
    for content in written.values():
        assert str(tmp_path).encode() not in content
    assert b"the best of its run" in written["best/README.md"]
    assert not list(run.glob("checkpoint-*/README.md"))
    AutoModelForCausalLM.from_pretrained(run / "final")

    # Weights of an earlier model are replaced, and other files stay.
    uploaded = hub.branches["me/sorter", "v2"]
    assert uploaded.keys() == {
        ".gitattributes",
        "notes.txt",
        *(file.name for file in (run / "final").iterdir()),
    }
    assert uploaded["model.safetensors"] == (run / "final" / "model.safetensors").read_bytes()
    assert hub.commits == ["grpokit: model after 4 steps"]
    assert "README.md" not in hub.branches["me/sorter", "main"]
    for file in run.rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes()

    assert main([*command, "--resume_from_checkpoint", str(run / "checkpoint-2")]) == 0
    for name, content in written.items():
        assert (run / name).read_bytes() == content, name


def test_an_adapters_card_and_an_upload_that_fails_from_python(tmp_path, hub, capsys, monkeypatch):
    peft = pytest.importorskip("peft")
    model = make_model_dir(tmp_path / "model")
    hub.refuses_commits = True
    trainer = grpokit.train(
        *(str(model), f"{REWARDS}:digits_in_order"),
        train_dataset=ROWS,
        output_dir=str(tmp_path / "run"),
        push_to_hub="me/adapter",
        lora_r=2,
        lora_save="adapter",
        max_steps=1,
        prompts_per_step=2,
        num_generations=2,
        max_completion_length=4,
    )
    assert len(trainer.history) == 1
    said, final = capsys.readouterr().out, tmp_path / "run" / "final"
    assert "warning: --push_to_hub me/adapter: could not be uploaded (" in said
    assert f"hf upload me/adapter {final} ." in said
    assert TOKEN not in said
    assert "the adapter's base model" in said
    front, text = parts_of((final / "README.md").read_text())
    assert front["library_name"] == "peft"
    assert "AutoPeftModelForCausalLM" in text
    assert "--lora-modules adapter=me/adapter" in text
    assert re.search(r"^\* `list of 10 rows, \w{8}`$", text, re.M)
    peft.AutoPeftModelForCausalLM.from_pretrained(final)
    # What only describes the model ends nothing.
    monkeypatch.setattr(grpokit.runs.report, "reward_curve", lambda *_: 1 / 0)
    copy = tmp_path / "copy"
    again = grpokit.GRPOTrainer(
        *(str(model), f"{REWARDS}:digits_in_order"),
        train_dataset=ROWS,
        output_dir=str(copy),
        max_steps=1,
        prompts_per_step=2,
        num_generations=2,
        max_completion_length=4,
    )
    again.train()
    assert "note: README.md could not be written (ZeroDivisionError" in capsys.readouterr().out
    assert (copy / "final" / "model.safetensors").is_file()
    assert not (copy / "final" / "README.md").exists()


@pytest.mark.parametrize(
    ("name", "token", "reason"),
    [
        ("me/new", None, "there is no token of the Hub; set HF_TOKEN, or log in with `hf auth login`"),
        ("me/new", "hf_other", "the token is not valid"),
        ("others/new", TOKEN, "the token may not write to it"),
        ("others/theirs", TOKEN, "the token may not write to it"),
    ],
)
def test_an_upload_that_could_not_be_made_is_refused_at_the_start(
    hub, monkeypatch, tmp_path, capsys, name, token, reason
):
    hub.branches["others/theirs", "main"] = {}
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", token)
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path, push_to_hub=name)))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    error = capsys.readouterr().err
    assert f"error: --push_to_hub {name}: {reason}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_hub_out_of_reach_is_said_at_the_start(hub, monkeypatch):
    from huggingface_hub import constants

    check_push("me/new", private=True)
    assert hub.private == {"me/new": True}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="--push_to_hub me/new: HF_HUB_OFFLINE is set"):
        check_push("me/new")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="--push_to_hub me/new: the Hub can't be reached"):
        check_push("me/new")


def test_only_the_main_rank_uploads(hub, tmp_path):
    config, state = TrainConfig(push_to_hub="me/new"), SimpleNamespace(step=1)
    check_push("me/new")
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "config.json").write_text("{}")
    for rank, commits in ((1, 0), (0, 1)):
        publish(SimpleNamespace(config=config, output=tmp_path, world=World(rank, 2), state=state))
        assert len(hub.commits) == commits


def test_a_reason_never_has_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (
        reason_of(ValueError(f"Illegal header value b'Bearer {TOKEN}'"))
        == "Illegal header value b'Bearer ***'"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": "name"}, "--push_to_hub name: expected ORG/NAME"),
        ({"push_to_hub": "a/b/c"}, "--push_to_hub a/b/c: expected ORG/NAME"),
        ({"push_to_hub": "a/b--c"}, "--push_to_hub a/b--c: expected ORG/NAME"),
        ({"push_to_hub": "a/b.git"}, "--push_to_hub a/b.git: expected ORG/NAME"),
        ({"hub_private_repo": True}, "--hub_private_repo: is not used without --push_to_hub"),
        ({"hub_revision": "v2"}, "--hub_revision v2: is not used without --push_to_hub"),
        ({"push_to_hub": "a/b", "hub_revision": "v 2"}, "--hub_revision v 2: is no name of a branch"),
    ],
)
def test_options_of_the_hub_that_cannot_work_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_train_config(tiny_config(tmp_path, **options))


def test_a_card_names_what_is_of_the_hub_and_nothing_of_the_machine():
    config = TrainConfig(
        model="/srv/me/models/Qwen",
        dataset=("org/math:main:0.7", "own=/home/me/own.jsonl:0.3"),
        environment=("openenv:http://10.0.0.2:8000",),
        output_dir="/home/me/runs/x",
        vllm_url="10.0.0.3:8000",
        system_prompt="Use ``` and ````.",
        eval_samples=7,
        judge_model="/srv/me/models/Judge",
    )
    shown = public_settings(config)
    assert yaml.safe_load(shown) == {
        "model": "Qwen",
        "dataset": ["org/math:main:0.7", "own=own.jsonl:0.3"],
        "system_prompt": "Use ``` and ````.",
        "environment": ["openenv"],
        "eval_samples": 7,
        "judge_model": "Judge",
    }
    card = ModelCard(
        *("demo", "org/base@v1", (("org/math", 1234), ("own.jsonl", None)), 60),
        *("grpo", "grpo = ...", "L = a\nb", shown, {"torch": "2.9"}),
        on_hub=("org/math",),
    )
    front, text = parts_of(card.text())
    assert front["base_model"] == "org/base"
    assert front["datasets"] == ["org/math"]
    assert front["tags"] == ["grpo", "reinforcement-learning", "grpokit"]
    assert "* `org/math`: 1,234 rows\n* `own.jsonl`\n" in text
    assert r"$$ L = a,\quad b $$" in text
    assert f"`````yaml\n{shown}`````" in text
    assert "## Reward" not in text
    assert "## Evaluation" not in text


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_card_says_how_an_adapter_is_served(is_plain):
    card = ModelCard(
        *("demo", "Qwen", (("own.jsonl", None),), 60),
        *("grpo", "grpo = ...", "L = a", "{}", {"torch": "2.9"}),
        base_on_hub=False,
        is_adapter=True,
        is_plain=is_plain,
    )
    text = card.text()
    assert "A LoRA adapter of `Qwen`, trained by reinforcement learning" in text
    assert ("vllm serve BASE --enable-lora" in text) == is_plain
    assert ("`BASE` is the directory of `Qwen`" in text) == is_plain
    assert ("Merge it into its base" in text) != is_plain


def test_the_figures_of_several_sets_have_names_beside_their_keys():
    after = {
        "eval/reward": 0.5,
        "eval/math/pass@1": 0.25,
        "eval/math/pass@1_ci95": 0.1,
        "eval/math/mine/a|b": 2,
        "eval/code/pass@1": 0.75,
    }
    card = ModelCard(
        *("m", "base", (("a.jsonl", None),), 4, "dapo", "dapo = x", "L = x", "a: 1\n", {}),
        before={"eval/math/pass@1": 0.0},
        after=after,
    )
    shown = [line for line in card.text().splitlines() if line.startswith("| ")]
    assert shown == [
        "| set | metric | before (step 0) | this model (step 4) |",
        "| --- | --- | --- | --- |",
        "| all | reward, `eval/reward` |  | 0.500 |",
        "| math | sampled accuracy (pass@1), `eval/math/pass@1` | 0.000 | 0.250 ± 0.100 |",
        r"| math | mine/a\|b, `eval/math/mine/a\|b` |  | 2.000 |",
        "| code | sampled accuracy (pass@1), `eval/code/pass@1` |  | 0.750 |",
    ]
