"""Runs whose completions come from a part of the distribution, or begin with a prefix."""

from __future__ import annotations

import pytest

from grpokit import GRPOTrainer
from grpokit.commands.cli import main
from grpokit.config.checks import check_train_config
from grpokit.config.options import TrainConfig
from grpokit.config.sampled import for_evaluation
from grpokit.config.yaml import to_yaml
from grpokit.policy.layout import LayoutChoice
from grpokit.training.setup.announce import start_notes
from grpokit.training.setup.loss import checked_loss
from helpers.agents import config_of
from helpers.launch import rows
from helpers.stops import same_bytes
from helpers.tiny import ROWS, tiny_config, write_rows

REWARD = """
def begins(completions):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    assert all(text.startswith("3") for text in texts), texts
    return [float(len(text) % 3) for text in texts]
"""


def test_a_run_from_the_command_line_and_from_python(tmp_path, capsys):
    """The reward fails where a completion lacks its prefix; its evaluation has settings of its own."""
    (tmp_path / "reward.py").write_text(REWARD)
    held_out = write_rows(tmp_path / "eval.jsonl", ROWS[:2])
    config = tiny_config(
        tmp_path,
        reward_funcs=(f"{tmp_path / 'reward.py'}:begins",),
        top_p=0.7,
        min_completion_length=2,
        generation_prefix="3",
        eval_dataset=str(held_out),
        eval_top_p=1.0,
        eval_max_completion_length=9,
        max_steps=2,
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr()
    note = "note: --top_p 0.7 --min_completion_length 2: completions come from another distribution"
    text = (said.out + said.err).replace("\n", " ")
    assert note in text
    assert "sampler_kl and sampler/* are left out, but for sampler/kept_mass, the share kept" in text
    for row in rows(tmp_path / "run", "metrics.jsonl"):
        assert 0.5 < row["sampler/kept_mass"] < 1
        assert not [name for name in row if name.startswith(("sampler_kl", "sampler/ess"))]
    groups = rows(tmp_path / "run", "completions.jsonl")
    assert all(text.startswith("3") for group in groups for text in group["completions"])
    options = {
        name: getattr(config, name) for name in ("top_p", "min_completion_length", "generation_prefix")
    }
    options |= {"eval_top_p": 1.0, "eval_max_completion_length": 9, "learning_rate": 1e-3, "dtype": "float64"}
    trainer = GRPOTrainer(
        model=config.model,
        reward_funcs=f"{tmp_path / 'reward.py'}:begins",
        train_dataset=config.dataset,
        eval_dataset=str(held_out),
        output_dir=str(tmp_path / "again"),
        **{name: getattr(config, name) for name in ("loss_type", "prompts_per_step", "num_generations")},
        **{name: getattr(config, name) for name in ("num_iterations", "max_completion_length", "max_steps")},
        num_threads=1,
        **options,
    )
    trainer.train()
    same_bytes(tmp_path / "again", tmp_path / "run")


def test_every_turn_of_an_episode_begins_with_the_prefix(tmp_path):
    config = config_of(tmp_path, generation_prefix="go ", chat_template_kwargs=("mood=calm",), max_steps=1)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    turns = episodes = 0
    for group in rows(tmp_path / "run", "completions.jsonl"):
        for episode in group["episodes"]:
            said = [m["content"] for m in episode["messages"] if m["role"] == "assistant"]
            assert all(text.startswith("go ") for text in said)
            turns, episodes = turns + len(said), episodes + 1
    assert turns > episodes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, "--top_p 0.0: must be above 0 and at most 1"),
        ({"top_k": -1}, "--top_k -1: must be 0"),
        ({"min_p": 1.5}, "--min_p 1.5: must be between 0"),
        ({"repetition_penalty": 0.0}, "--repetition_penalty 0.0: must be above 0"),
        ({"eval_top_p": 2.0}, "--eval_top_p 2.0: must be above 0 and at most 1"),
        ({"eval_temperature": 0.0}, "--eval_temperature 0.0: must be above 0"),
        ({"eval_min_completion_length": 9}, "--eval_min_completion_length 9: must be 0 or more, and at most"),
        ({"eval_stop": ("",)}, "--eval_stop"),
        ({"chat_template": "none.jinja"}, "--chat_template none.jinja: no such file"),
    ],
)
def test_values_that_cannot_work_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        check_train_config(tiny_config(tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "who"),
    [
        ({"correction_mode": "truncate"}, "--correction_mode truncate"),
        ({"opsm_threshold": 0.1}, "--opsm_threshold 0.1"),
        ({"loss_type": "dppo_tv"}, "--loss_type dppo_tv"),
    ],
)
@pytest.mark.parametrize("shaped", [{"top_k": 5}, {"repetition_penalty": 1.2}, {"min_completion_length": 3}])
def test_what_compares_sampler_and_trainer_is_refused(options, who, shaped):
    (flag,) = shaped
    with pytest.raises(ValueError, match=f"--{flag} .*{who} compares the two"):
        checked_loss(TrainConfig(**options, **shaped))
    checked_loss(TrainConfig(**options))


def test_rollouts_one_step_old_are_not_corrected_and_the_start_says_so():
    config = TrainConfig(sampler="vllm", async_depth=1, top_p=0.9)
    loss = checked_loss(config)
    assert loss.correction is None
    notes = start_notes(config, loss, LayoutChoice(packed=False, share="never", shares_not=None))
    assert any("--top_p 0.9" in note and "one step old are not corrected" in note for note in notes)


def test_the_settings_of_an_evaluation_are_trainings_unless_given():
    config = TrainConfig(top_p=0.9, stop=("a",), eval_top_p=1.0, eval_stop=())
    assert (for_evaluation(config).top_p, for_evaluation(config).stop) == (1.0, ())
    assert for_evaluation(config).temperature == config.temperature
