"""A converted file trains as TRL 1.16 does: GRPOTrainer and grpokit, from one file, have the same first gradient.

Both get the same completions, which another policy than the trained one has sampled, so that ratios, clips, caps and the
KL penalty's gradient all act. Where TRL isn't installed, these tests are skipped, loudly.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from grpokit.batch.advantages import add_advantages, mask_truncated
from grpokit.batch.plan import plan_step
from grpokit.commands.convert import convert
from grpokit.commands.convert.to_trl import convert_to_trl
from grpokit.config.foreign_defaults import SWIFT_DEFAULTS, TRANSFORMERS, TRL_CONFIG, TRL_MODEL
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import from_yaml
from grpokit.policy.learn import Learning, optimize
from grpokit.policy.load import load_policy
from grpokit.policy.scoring import fill_logps, score
from grpokit.training.setup.loss import checked_loss
from grpokit.types import Prompt, Rollout, RolloutGroup
from helpers.against_trl import COMPLETIONS, FIELDS, REWARDS, encode, sampler_noise
from helpers.places import HELPERS
from helpers.tiny import make_model_dir


def swift_source() -> Path | None:
    """The directory of ms-swift's source where it is installed. `swift` alone may be OpenStack's."""
    try:
        version = importlib.metadata.version("ms-swift")
    except importlib.metadata.PackageNotFoundError:
        return None
    found = importlib.util.find_spec("swift") if version.startswith("4.6") else None
    return Path(found.submodule_search_locations[0]) if found and found.submodule_search_locations else None


HAS_TRL = importlib.util.find_spec("trl") is not None
NOT_CHECKED = "NOT CHECKED AGAINST TRL: trl 1.16 isn't installed (pip install 'grpokit[bench]')"
SWIFT = swift_source()
needs_trl = pytest.mark.skipif(not HAS_TRL, reason=NOT_CHECKED)

BOTH_REWARDS = {"reward_funcs": ["spread", "brevity"], "reward_weights": [1.0, 0.5]}
PROBES = {
    "defaults": {},
    "grpo_with_kl": {"loss_type": "grpo", "beta": 0.1},
    "grpo_with_its_own_kl": {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False},
    "dapo_with_kl": {"beta": 0.1, "epsilon": 0.1},
    "bnpo": {"loss_type": "bnpo"},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "dr_grpo_unscaled": {"loss_type": "dr_grpo", "scale_rewards": False},
    "dr_grpo_by_the_batch": {"loss_type": "dr_grpo", "scale_rewards": "batch"},
    "cispo": {"loss_type": "cispo"},
    "cispo_with_kl": {"loss_type": "cispo", "beta": 0.1},
    "cispo_with_a_cap": {"loss_type": "cispo", "epsilon_high": 1.05},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 2.0},
    "luspo": {"loss_type": "luspo"},
    "luspo_of_the_paper": {
        "loss_type": "luspo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.01,
        "epsilon_high": 0.02,
    },
    "vespo": {"loss_type": "vespo", "vespo_k_pos": 1.5, "vespo_lambda_neg": 1.0},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.01},
    "two_sided": {"loss_type": "grpo", "delta": 1.25, "epsilon_high": 0.1},
    "gdpo": {"multi_objective_aggregation": "normalize_then_sum", **BOTH_REWARDS},
    "two_rewards": BOTH_REWARDS,
    "off_policy_mask": {"off_policy_mask_threshold": 0.02},
    "filtered": {"mask_truncated_completions": True},
    "temperature": {"temperature": 0.7},
    "entropy_quantile": {"top_entropy_quantile": 0.5},
    "entropy_bonus": {"entropy_coef": 0.01},
    "accumulated": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 5},
    "vllm": {"use_vllm": True},
    "vllm_by_token": {
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.2,
        "loss_type": "grpo",
    },
    "vllm_by_sequence": {"use_vllm": True, "vllm_importance_sampling_mode": "sequence_truncate"},
    "vespo_with_vllm": {
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": 1.2,
        "loss_type": "vespo",
    },
    "sapo_by_sequence": {"loss_type": "sapo", "importance_sampling_level": "sequence"},
    "cispo_by_sequence": {
        "loss_type": "cispo",
        "importance_sampling_level": "sequence",
        "epsilon_high": 1.01,
    },
    "dapo_by_sequence": {"importance_sampling_level": "sequence", "epsilon": 0.01},
    "luspo_with_kl": {"loss_type": "luspo", "beta": 0.1},
    "vllm_masked": {
        "use_vllm": True,
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_min": 0.6,
        "vllm_importance_sampling_clip_max": 1.6,
    },
}


def move(model, by: float, seed: int):
    """Moves a model's weights a little, so that the ratios to it are near 1."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The models, a file for each probe, and TRL's gradients."""
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("trl")
    policy = make_model_dir(place / "policy")
    for name, by in (("old", 0.025), ("reference", 0.05)):
        make_model_dir(place / name)
        model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float64)
        move(model, by, seed=len(name))
        model.save_pretrained(place / name)
    for name, probe in PROBES.items():
        theirs = FIELDS | {"model_name_or_path": str(policy), "reward_funcs": ["spread"]} | probe
        (place / f"{name}.yaml").write_text(yaml.safe_dump(theirs))
    script = [sys.executable, str(HELPERS / "against_trl.py"), str(place)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def gradient_of_ours(place, name, **changes) -> torch.Tensor:
    """The gradient of the converted file's run, as a share of the norm at which it is clipped, times TRL's norm."""
    from transformers import AutoTokenizer

    theirs = yaml.safe_load((place / f"{name}.yaml").read_text())
    ours, _ = convert(theirs)
    config = replace(from_yaml(TrainConfig, yaml.safe_dump(ours), name), **changes)
    policy, old, reference = (
        load_policy(
            str(place / model), dtype="float64", temperature=config.temperature, device=torch.device("cpu")
        )
        for model in ("policy", "old", "reference")
    )
    loss = checked_loss(config)
    tokenizer = AutoTokenizer.from_pretrained(place / "policy")
    groups = [rollouts(tokenizer, prompt, number, config) for number, prompt in enumerate(COMPLETIONS)]
    scaling = config.scale_rewards or loss.scale_rewards
    groups = add_advantages(groups, config.advantage_estimator, scaling, config.reward_weights or None)
    groups = mask_truncated(groups) if config.mask_truncated_completions else groups
    (update,) = plan_step(groups, loss, config.updates_per_step)
    how = Learning(max_grad_norm=0.0)
    if config.beta:
        update = fill_logps(update, "ref_logps", score(reference, update.samples, how))
    if config.sampler == "vllm":
        noise = {s.index: sampler_noise(s.completion_ids.tolist()) for s in update.samples}
        logps = score(policy, update.samples, how)
        update = fill_logps(update, "sampler_logps", {i: logps[i] + noise[i] for i in noise})
    else:
        logps = score(old, update.samples, how)
        update = fill_logps(fill_logps(update, "old_logps", logps), "sampler_logps", logps)
    optimize(policy, update, loss, torch.optim.SGD(policy.parameters(), lr=0.0), how)
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters()])
    return gradient * theirs.get("max_grad_norm", 1.0) / config.max_grad_norm


def rollouts(tokenizer, prompt, number, config) -> RolloutGroup:
    """The completions of a prompt, scored by the rewards that the configuration names."""
    completions = [encode(tokenizer, text) for text in COMPLETIONS[prompt]]
    rewards = torch.tensor(
        [REWARDS[name](completions) for name in config.reward_funcs], dtype=torch.float64
    ).T
    weights = torch.tensor(config.reward_weights or [1.0], dtype=torch.float64)
    made = [
        Rollout(
            torch.tensor(ids),
            torch.zeros(len(ids), dtype=torch.float64),
            torch.zeros(len(ids)),
            text,
            "stop" if text.endswith(".") else "length",
            0,
            torch.ones(len(ids), dtype=torch.bool),
        )
        for text, ids in zip(COMPLETIONS[prompt], completions, strict=True)
    ]
    ids = tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    group = RolloutGroup(Prompt(number, ids, prompt, {}, f"probe:{number}"), tuple(made))
    return replace(group, rewards=rewards, reward=rewards @ weights)


def distance(place, name, **changes) -> float:
    """The relative difference of the two gradients."""
    from safetensors.torch import load_file

    refused = place / f"{name}.error"
    assert not refused.exists(), refused.read_text()[-2000:]
    theirs = load_file(place / f"{name}.safetensors")["gradient"]
    assert theirs.norm() > 0
    return float((gradient_of_ours(place, name, **changes) - theirs).norm() / theirs.norm())


@needs_trl
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:epsilon 0.01")  # the ratios here move further than a run's
@pytest.mark.parametrize("name", PROBES)
def test_a_converted_file_has_trls_first_gradient(folder, name):
    assert distance(folder, name) < 1e-5  # TRL keeps rewards and advantages in float32


# What was converted before, or would be without the option: another gradient, so that the probe can fail.
WRONG = {
    "defaults": {"epsilon_high": 0.28},
    "grpo_with_kl": {"kl_gradient": "own"},
    "dr_grpo": {"scale_rewards": "none"},
    "dr_grpo_unscaled": {"loss_type": "grpo", "reduction": "constant_length", "scale_rewards": "group"},
    "cispo": {"max_grad_norm": 1.0},
    "cispo_with_a_cap": {"epsilon_high": 5.0},
    "sapo": {"tau_pos": 1.0},
    "luspo": {"loss_type": "luspo", "reduction": None, "epsilon": 0.002, "epsilon_high": 0.0025},
    "vespo": {"loss_kwargs": ()},
    "two_sided": {"delta": None},
    "gdpo": {"advantage_estimator": "group"},
    "off_policy_mask": {"opsm_threshold": None},
    "filtered": {"mask_truncated_completions": False},
    "entropy_quantile": {"top_entropy_quantile": None},
    "vllm": {"correction_high": 1e9},
    "vllm_by_token": {"correction_cap": 2.0},
    "vllm_masked": {"correction_low": 0.0},
}


@needs_trl
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:epsilon 0.002")
@pytest.mark.parametrize(("name", "changes"), WRONG.items(), ids=WRONG)
def test_another_value_has_another_gradient(folder, name, changes):
    assert distance(folder, name, **changes) > 1e-3


@needs_trl
def test_the_table_of_defaults_is_trls():
    from trl import GRPOConfig, ModelConfig

    for kind, table in ((GRPOConfig, TRL_CONFIG), (ModelConfig, TRL_MODEL)):
        fields = {field.name: field.default for field in dataclasses.fields(kind)}
        assert {name: fields[name] for name in table} == table


OURS = {
    "plain": {},
    "server": {"sampler": "vllm", "correction_mode": "truncate", "beta": 0.1},
    "adapter": {"lora_r": 8, "dtype": "float32", "stop": ["x"], "report_to": ["wandb"]},
    "on_the_hub": {"dataset": "org/data:main", "loss_type": "vespo", "loss_kwargs": ["vespo_k_pos=1.5"]},
}


@needs_trl
@pytest.mark.parametrize("name", OURS)
def test_trl_reads_the_file_that_is_written_for_it(name, tmp_path):
    """In a process of its own: TRL warns about itself when it is imported."""
    theirs, _ = convert_to_trl({"model": "org/m", "dataset": "d.jsonl", **OURS[name]}, "run.yaml")
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(theirs))
    read = (
        "import json, sys; from trl.scripts.grpo import make_parser\n"
        "found = make_parser().parse_args_and_config(['--config', sys.argv[1], '--use_cpu', 'true'])\n"
        "names = json.loads(sys.argv[2])\n"
        "print(json.dumps({n: next(getattr(a, n) for a in found if hasattr(a, n)) for n in names}, default=vars))"
    )
    names = json.dumps(list(theirs))
    script = [sys.executable, "-c", read, str(tmp_path / "trl.yaml"), names]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    found.pop("datasets", None)
    found |= {
        "report_to": found["report_to"] or "none",
        "lora_target_modules": theirs.get("lora_target_modules"),
    }
    assert {key: found[key] for key in theirs if key != "datasets"} == {
        key: value for key, value in theirs.items() if key != "datasets"
    }


@pytest.mark.skipif(SWIFT is None, reason="NOT CHECKED AGAINST MS-SWIFT: ms-swift 4.6 isn't installed")
def test_the_table_of_defaults_is_ms_swifts():
    """Read from its source, which needs more to be imported than to be read."""
    found: dict[str, list[object]] = {}
    for file in ("rlhf_trainers/args_mixin", "arguments/rlhf_args", "trainers/arguments", "arguments/tuner_args",
                 "arguments/base_args/base_args", "arguments/base_args/data_args"):  # fmt: skip
        for node in ast.walk(ast.parse((SWIFT / f"{file}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign):
                given = [k.value for k in getattr(node.value, "keywords", []) if k.arg == "default"]
                for value in given or [node.value]:
                    if isinstance(value, ast.Constant):
                        found.setdefault(ast.unparse(node.target), []).append(value.value)
    by_code = {"beta", "loss_type", "gradient_accumulation_steps", "truncation_strategy", *TRANSFORMERS}
    for name, value in SWIFT_DEFAULTS.items():
        assert name in by_code or value in found[name], name
