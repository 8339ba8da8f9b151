"""grpokit's losses inside TRL's GRPOTrainer, against TRL 1.16 itself and against `policy_loss` on the whole step at once."""

from __future__ import annotations

import re

import pytest
import torch

from grpokit.losses import Counts, LossBatch, UpdateStats, make_loss, policy_loss, sequence_weights
from helpers.against_trl import COMPLETIONS, spread
from helpers.inside_trl import assert_same, gradient, loaded, make_trainer
from helpers.places import ROOT

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.filterwarnings("default"),  # TRL's own, and those of what it imports
]


@pytest.fixture
def stand_in_for_vllm(monkeypatch):
    """TRL believes that vLLM samples; the completions are fixed."""
    from unittest.mock import MagicMock

    import trl.trainer.grpo_trainer as module

    monkeypatch.setattr(module, "VLLMGeneration", MagicMock())


# --------------------------------------------------------------------------- against TRL

# Options with which TRL's gradient, of one micro-batch on one process, is the gradient that is meant.
AS_IN_TRL = {
    "grpo": {},
    "bnpo": {},
    "dr_grpo": {"scale_rewards": "none"},
    "dr_grpo scaled": {},
    "dapo": {},
    "dapo clip-higher": {"epsilon_high": 0.28},
    "cispo": {"epsilon_high": 1.2},
    "sapo": {"sapo_temperature_pos": 2.0},
    "luspo": {"importance_sampling_level": "sequence", "epsilon": 0.01, "epsilon_high": 0.02},
    "luspo of tokens": {},
    "vespo": {"vespo_k_pos": 1.5},
    "grpo two-sided": {"delta": 1.25, "epsilon_high": 0.1},
    "grpo of sequences": {"importance_sampling_level": "sequence", "epsilon": 0.01},
    "grpo kl": {"beta": 0.1},
    "dapo kl of its own": {"beta": 0.1, "use_bias_correction_kl": False},
    "dapo opsm": {"off_policy_mask_threshold": 0.01},
    "dapo top entropy": {"top_entropy_quantile": 0.5},
    "dapo masked": {"mask_truncated_completions": True},
    "dapo bonus": {"entropy_coef": 0.1},
}
UNDER_VLLM = {
    "dapo sequence mask": {},
    "dapo token truncate": {
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.1,
    },
    "dapo both bounds": {
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.1,
        "vllm_importance_sampling_clip_min": 0.9,
    },
    "grpo token mask": {
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_min": 0.8,
    },
    "vespo token mask": {"vllm_importance_sampling_mode": "token_truncate"},
}


@pytest.mark.parametrize("name", AS_IN_TRL)
def test_gradient_of_a_loss_of_trl_is_trls(folder, name):
    loss, options = name.split()[0], AS_IN_TRL[name]
    theirs = gradient(folder, loss, own=True, **options)
    assert_same(gradient(folder, loss, **options), theirs, 1e-6)  # TRL's log-probs are float32


@pytest.mark.parametrize("name", UNDER_VLLM)
def test_correction_for_vllm_is_trls(folder, name, stand_in_for_vllm):
    loss, options = name.split()[0], {"use_vllm": True} | UNDER_VLLM[name]
    theirs = gradient(folder, loss, own=True, **options)
    assert_same(gradient(folder, loss, **options), theirs, 1e-6)


# --------------------------------------------------------------------------- against the loss itself

LOSSES_OF_GRPOKIT = {
    "gmpo": {},
    "gspo_token": {},
    "spo": {"epsilon": 0.1},
    "m2po": {"m2_threshold": 0.001},
    "real": {"real_tau": 0.3},
    "clip_cov": {"cov_low": -9.0, "cov_ratio": 0.3},
    "kl_cov": {"kl_cov_ratio": 0.2},
    "fipo": {},
    "reinforce": {},
}


def whole_step(trainer, loss, *, at=0, version=0):
    """`policy_loss`, called once with every completion of the generation: its value and its gradient."""
    output, model = trainer.generated[0], loaded_at(trainer, at)
    ids, attention = (
        torch.cat([output[f"prompt_{name}"], output[f"completion_{name}"]], 1) for name in ("ids", "mask")
    )
    mask = output["completion_mask"].bool()
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, output["completion_ids"][..., None])[..., 0]
    lengths, groups = mask.sum(-1), torch.arange(len(mask)) // trainer.num_generations
    batch = LossBatch.from_padded(
        mask,
        logps=logps,
        advantages=output["advantages"].double(),
        weights=sequence_weights(loss, lengths, Counts.of(lengths, groups), groups),
        group_ids=groups,
        old_logps=output["old_per_token_logps"],
    )
    stats = UpdateStats.of(loss, batch).finish(loss, trainer.args.seed, version)
    value = policy_loss(loss, batch, stats).loss
    value.backward()
    return float(value), torch.cat([p.grad.flatten() for p in model.parameters()])


def loaded_at(trainer, step):
    model = loaded(trainer.folder, "policy")
    model.load_state_dict(trainer.before[step])
    return model


@pytest.mark.parametrize("name", LOSSES_OF_GRPOKIT)
def test_gradient_of_a_loss_that_trl_lacks_is_that_of_the_loss(folder, name):
    trainer = make_trainer(folder, name, LOSSES_OF_GRPOKIT[name], micro_batches=2)
    trainer.train()
    loss = make_loss(name, **LOSSES_OF_GRPOKIT[name])
    assert_same(whole_step(trainer, loss)[1], trainer.gradients[0], 1e-9)


def test_second_pass_over_a_generation_draws_anew(folder):
    options = LOSSES_OF_GRPOKIT["clip_cov"]
    trainer = make_trainer(folder, "clip_cov", options, micro_batches=2, num_iterations=2, max_steps=2)
    trainer.train()
    assert len(trainer.generated) == 1
    loss = make_loss("clip_cov", **options)
    assert_same(whole_step(trainer, loss, at=1, version=1)[1], trainer.gradients[1], 1e-9)
    _, first = whole_step(trainer, loss, at=1, version=0)
    assert (first - trainer.gradients[1]).norm() > 1e-3


def test_loss_may_be_an_object(folder):
    loss = make_loss("dapo", epsilon_high=0.28, reduction="sequence_mean")
    found = gradient(folder, loss, micro_batches=2)
    assert_same(gradient(folder, "grpo", epsilon_high=0.28), found, 1e-10)


# --------------------------------------------------------------------------- what Trainer does with the loss


def test_logged_loss_is_that_of_the_step(folder):
    trainer = make_trainer(folder, "grpo", micro_batches=4)
    trainer.train()
    value, _ = whole_step(trainer, make_loss("grpo"))
    assert trainer.state.log_history[0]["loss"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("reads", [True, False])
def test_division_by_the_trainer_is_undone(folder, monkeypatch, reads):
    """transformers before `loss_is_scaled_for_ga`, or without it, divides each micro-batch's loss by their number."""
    from transformers import Trainer

    expected = gradient(folder, "grpo", micro_batches=4)
    trainer = make_trainer(folder, "grpo", micro_batches=4)
    if reads:
        trainer.loss_is_scaled_for_ga = False
    else:
        monkeypatch.delattr(Trainer, "loss_is_scaled_for_ga")
        monkeypatch.setattr(type(trainer), "loss_is_scaled_for_ga", None, raising=False)
    trainer.train()
    assert_same(expected, trainer.gradients[0], 1e-10)


def test_division_by_accelerate_is_undone(folder):
    expected = gradient(folder, "grpo", micro_batches=4)
    trainer = make_trainer(folder, "grpo", micro_batches=4)
    trainer.accelerator.gradient_accumulation_steps = 4
    trainer.train()
    assert_same(expected, trainer.gradients[0], 1e-10)


def test_shorter_last_step_of_an_epoch_counts_itself(folder, monkeypatch):
    """An epoch of three micro-batches, in steps of two: the second step is half of its generation."""
    trainer = make_trainer(
        folder, "grpo", micro_batches=2, max_steps=-1, num_train_epochs=1, num_iterations=2
    )
    whole = trainer.get_train_dataloader

    class Shorter:
        def __init__(self):
            self.loader = whole()

        def __len__(self):
            return 3

        def __iter__(self):
            return iter([batch for batch, _ in zip(self.loader, range(3), strict=False)])

    monkeypatch.setattr(trainer, "get_train_dataloader", Shorter)
    trainer.train()
    assert len(trainer.gradients) == 2
    half = trainer.generated[0]
    kept = trainer._buffered_inputs[0]["sequence_ids"]
    rows = torch.isin(half["sequence_ids"], kept)
    trainer.generated = [{key: v[rows] if v.ndim else v for key, v in half.items()}]
    assert_same(whole_step(trainer, make_loss("grpo"), at=1)[1], trainer.gradients[1], 1e-9)


def test_evaluation_is_of_the_whole_batch(folder):
    trainer = make_trainer(folder, "real", evaluates=True, per_device_eval_batch_size=20)
    values = trainer.evaluate()
    assert values["eval_loss"] == values["eval_loss"]
    assert {"eval_ratio/mean", "eval_entropy", "eval_reward"} <= values.keys()


def test_run_resumes_from_a_checkpoint_of_trl(folder, tmp_path):
    how = {
        "micro_batches": 2,
        "max_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "output_dir": str(tmp_path),
    }
    straight = make_trainer(folder, "gmpo", **how)
    straight.train()
    resumed = make_trainer(folder, "gmpo", **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert resumed.state.global_step == 2
    assert len(resumed.gradients) == 1
    assert_same(straight.gradients[1], resumed.gradients[0], 1e-6)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_pages_program_trains(folder, tmp_path, monkeypatch, language):
    import datasets
    import trl.rewards

    page = (ROOT / "docs" / language / "integrations.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python trl\n(.*?)```", page, re.DOTALL)
    rows = datasets.Dataset.from_list([{"prompt": prompt} for prompt in COMPLETIONS])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    monkeypatch.setattr(trl.rewards, "accuracy_reward", spread)
    small = "gradient_accumulation_steps=4, max_steps=1, max_completion_length=4, use_cpu=True, bf16=False, report_to='none'"
    program = program.replace("gradient_accumulation_steps=4", small)
    program = program.replace("Qwen/Qwen2.5-0.5B-Instruct", str(folder / "policy"))
    program = program.replace("runs/gmpo", str(tmp_path))
    names = {}
    exec(program, names)  # noqa: S102 (our own documentation)
    assert str(names["trainer"].grpokit_loss).startswith("gmpo")
    assert names["trainer"].state.global_step == 1


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            {"loss": "grpo", "micro_batches": 4, "steps_per_generation": 4, "gradient_accumulation_steps": 3},
            "set gradient_accumulation_steps to 1, 2 or 4, or steps_per_generation to 3 or 6",
        ),
        ({"loss": "cispo"}, r"epsilon_high 0.2: must be at least 1; .* set GRPOConfig\(epsilon_high=5.0\)"),
        ({"loss": "gmpo", "kwargs": {"beta": 0.1}}, r"set GRPOConfig\(beta=0.1\)"),
        ({"loss": "dppo_tv"}, r"GRPOConfig\(use_vllm=True\)"),
        ({"loss": "real", "micro_batches": 2, "steps_per_generation": 4}, "set steps_per_generation to 2"),
        ({"loss": "gmpo", "kwargs": {"tau": 1}}, "tau 1: not used by loss_type gmpo"),
        ({"loss": "gmpo", "kwargs": {"teacher_coef": 0.1}}, "TRL's GRPOTrainer has no teacher"),
        ({"loss": "gmppo"}, "did you mean 'gmpo'"),
        ({"loss": "grpo", "use_adaptive_entropy": True}, "use_adaptive_entropy"),
        ({"loss": make_loss("grpo"), "kwargs": {"epsilon": 0.1}}, "give them to make_loss"),
        ({"loss": make_loss("grpo", beta=0.1)}, r"set GRPOConfig\(beta=0.1\)"),
    ],
)
def test_options_that_cannot_work_are_refused_at_construction(folder, named, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(folder, **named)


def test_another_version_of_trl_is_refused(monkeypatch):
    import trl

    from grpokit.integrations.trl import _import_trl

    monkeypatch.setattr(trl, "__version__", "1.17.0")
    with pytest.raises(
        ImportError, match=r"trl 1\.17\.0: .* 1\.16 is the tested one: pip install 'grpokit\[trl\]'"
    ):
        _import_trl()
