"""Runs with a teacher: against an independent loop, alone and beside rewards, several of them, stopped and resumed."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpokit import GRPOTrainer
from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from helpers.launch import rows
from helpers.stops import goes_on_from_an_update
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows


@pytest.fixture
def teacher(tmp_path):
    """A directory with another model of the same tokenizer."""
    return moved(make_model_dir(tmp_path / "teacher"), 0.05)


def moved(path, by):
    """Moves the weights of the model at `path` a little."""
    model = AutoModelForCausalLM.from_pretrained(path)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=draw))
    model.save_pretrained(path)
    return path


def command_for(directory, **changes):
    """The command of a run without rewards; its last argument, the output directory, is missing."""
    config = tiny_config(directory, **({"max_steps": 2, "reward_funcs": (), "num_iterations": 1} | changes))
    (directory / "run.yaml").write_text(to_yaml(config))
    return ["train", "--config", str(directory / "run.yaml"), "--output_dir"]


def logps_of(model, prompt, completion):
    """Log-probs of a completion's tokens under a model of transformers, connected to its weights."""
    ids = torch.tensor([[*prompt, *completion]])
    scores = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return scores.gather(1, torch.tensor(completion)[:, None])[:, 0]


def test_the_first_update_is_that_of_a_plain_loop(tmp_path, teacher):
    """Value mean(logp − teacher), gradient (logp − teacher) times that of logp, over all tokens of the update."""
    config = tiny_config(tmp_path)
    trainer = GRPOTrainer(
        model=config.model,
        train_dataset=config.dataset,
        teacher=str(teacher),
        teacher_coef=0.5,
        prompts_per_step=3,
        num_generations=2,
        max_completion_length=6,
        max_steps=1,
        max_grad_norm=0.0,
        dtype="float64",
        output_dir=str(tmp_path / "run"),
    )
    step = next(trainer.steps())
    ours, theirs = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in (config.model, teacher)
    )
    pairs = [(g.prompt.ids, r.completion_ids.tolist()) for g in step.groups for r in g.rollouts]
    logps = torch.cat([logps_of(ours, *pair) for pair in pairs])
    with torch.no_grad():
        gap = logps - torch.cat([logps_of(theirs, *pair) for pair in pairs])
    (0.5 * (gap * logps).sum() / len(logps)).backward()
    norm = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None]).norm()
    assert step.metrics["loss/teacher"] == pytest.approx(0.5 * float(gap.mean()), rel=1e-6)
    assert step.metrics["teacher/kl"] == pytest.approx(float(gap.mean()), rel=1e-6)
    assert step.metrics["loss/policy"] == 0
    assert step.metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-6)
    assert step.metrics["frac_tokens_dropped"] == 0
    assert not [name for name in step.metrics if name.startswith("reward")]


def test_the_policy_comes_closer_to_its_teacher(tmp_path, capsys, teacher):
    command = command_for(tmp_path, teacher=(str(teacher),), max_steps=12, learning_rate=3e-3)
    assert main([*command, str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert (
        "loss: reverse KL to the teacher, mean over tokens (teacher_coef 1, teacher_kl_gradient k2)" in said
    )
    card = (tmp_path / "run" / "final" / "README.md").read_text()
    assert "by on-policy distillation: 12 steps of training" in card
    assert "- grpo\n" not in card
    assert "--teacher TEACHER" in card
    page = (tmp_path / "run" / "report.html").read_text()
    assert "KL to the teacher" in page
    gaps = [row["teacher/kl"] for row in rows(tmp_path / "run", "metrics.jsonl")]
    assert sum(gaps[-3:]) < 0.5 * sum(gaps[:3])


def test_rewards_and_a_teacher_add_up(tmp_path, teacher):
    """The loss is the sum of its parts, and the policy's part is there where rewards differ."""
    command = command_for(
        tmp_path,
        teacher=(str(teacher),),
        reward_funcs=tiny_config(tmp_path).reward_funcs,
        beta=0.1,
        entropy_coef=0.01,
    )
    assert main([*command, str(tmp_path / "run")]) == 0
    for row in rows(tmp_path / "run", "metrics.jsonl"):
        parts = [row[f"loss/{name}"] for name in ("policy", "kl", "entropy", "teacher")]
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-9, abs=1e-12)
        assert all(parts[2:])
        assert row["reward_std"] > 0


def test_several_teachers_by_a_column(tmp_path, capsys, teacher):
    """The row that names the policy's own model has nothing to learn; the others have."""
    own = tiny_config(tmp_path).model
    named = [row | {"teacher": "same" if n % 2 else "other"} for n, row in enumerate(ROWS[:4])]
    write_rows(tmp_path / "named.jsonl", named)
    both = {"dataset": str(tmp_path / "named.jsonl"), "teacher": (f"same={own}", f"other={teacher}")}
    command = command_for(tmp_path, **both, shuffle=False, max_steps=1)
    assert main([*command, str(tmp_path / "run")]) == 0
    alone = command_for(tmp_path, teacher=(str(teacher),), shuffle=False, max_steps=1)
    assert main([*alone, str(tmp_path / "alone")]) == 0
    mixed, one = (rows(tmp_path / name, "metrics.jsonl")[0] for name in ("run", "alone"))
    assert 0 < mixed["grad_norm"] < one["grad_norm"]
    write_rows(tmp_path / "named.jsonl", [ROWS[0] | {"teacher": "othr"}] * 4)
    assert main([*command_for(tmp_path, **both), str(tmp_path / "wrong")]) == 2
    assert "the column `teacher` names 'othr' (did you mean" in " ".join(capsys.readouterr().err.split())
    write_rows(tmp_path / "named.jsonl", ROWS)
    assert main([*command_for(tmp_path, **both), str(tmp_path / "none")]) == 2
    assert "need a column `teacher`" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("changes", [{}, {"num_iterations": 2, "loss_type": "gspo"}])
def test_a_stop_within_an_update_and_a_resume_change_nothing(tmp_path, monkeypatch, teacher, changes):
    command = command_for(tmp_path, teacher=(str(teacher),), updates_per_step=2, log_completions=4, **changes)
    goes_on_from_an_update(monkeypatch, command, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"teacher_coef": 0.5, "reward_funcs": ("accuracy",)},
            "--teacher_coef 0.5: does nothing without --teacher",
        ),
        ({"teacher": ("no/such/place/x",)}, "is neither a model with a config.json nor a URL"),
        ({"teacher": ("a=http://h:1", "http://h:2")}, "several teachers need a name each"),
        ({"teacher": ("http://127.0.0.1:9",), "temperature": 0.7}, "at temperature 1 alone"),
        ({"teacher": ("http://127.0.0.1:9",)}, "--teacher http://127.0.0.1:9: no vLLM server answers there"),
        ({"teacher": ("TEACHER",), "max_resample_times": 1}, "chooses groups by their rewards"),
        ({"teacher": ("TEACHER",), "eval_dataset": "TRAIN"}, "add --eval_reward_funcs"),
        ({}, "--reward_funcs (missing)"),
    ],
)
def test_what_can_not_work_is_refused(tmp_path, capsys, teacher, changes, message):
    places = {"TEACHER": str(teacher), "TRAIN": str(tmp_path / "train.jsonl")}
    if "teacher" in changes:
        changes = changes | {"teacher": tuple(places.get(value, value) for value in changes["teacher"])}
    if "eval_dataset" in changes:
        changes = changes | {"eval_dataset": places["TRAIN"]}
    assert main([*command_for(tmp_path, **changes), str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert message in " ".join((said.out + said.err).split())


def test_a_teacher_of_another_tokenizer_is_refused(tmp_path, capsys, teacher):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    words = list(tokenizer.get_vocab())
    text = (teacher / "tokenizer.json").read_text()
    (teacher / "tokenizer.json").write_text(text.replace(f'"{words[-1]}"', '"€"', 1))
    assert main([*command_for(tmp_path, teacher=(str(teacher),)), str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert "its tokenizer has other tokens than --model's" in " ".join((said.out + said.err).split())
