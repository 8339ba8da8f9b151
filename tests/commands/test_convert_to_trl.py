"""The way back: a file of grpokit's for `trl grpo --config`, and there and back again."""

from __future__ import annotations

import pytest
import yaml

from grpokit.commands.cli import main
from grpokit.commands.convert import convert
from grpokit.commands.convert.to_trl import NOT_NEEDED, RENAMED, SAME, TAKEN, convert_to_trl
from grpokit.config.options import TrainConfig

BASE = {"model": "org/model", "dataset": "org/data", "reward_funcs": ["accuracy"]}


def back(values: dict, processes: int = 1) -> tuple[dict, list[str]]:
    return convert_to_trl(BASE | values, "run.yaml", processes)


VALUES = [
    ({}, {"loss_type": "grpo", "epsilon": 0.2, "scale_rewards": "group", "max_completion_length": 256}),
    (
        {},
        {
            "lr_scheduler_type": "constant_with_warmup",
            "max_steps": 100,
            "report_to": "none",
            "save_strategy": "no",
        },
    ),
    ({"loss_type": "dapo"}, {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
    ({"loss_type": "dr_grpo"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    (
        {"loss_type": "grpo", "reduction": "constant_length"},
        {"loss_type": "dr_grpo", "scale_rewards": "group"},
    ),
    ({"loss_type": "cispo"}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    (
        {"loss_type": "gspo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_high": 4e-4},
    ),
    ({"loss_type": "luspo"}, {"importance_sampling_level": "sequence", "epsilon": 2e-3}),
    ({"loss_type": "sapo", "tau_pos": 2.0}, {"sapo_temperature_pos": 2.0}),
    ({"loss_type": "vespo", "loss_kwargs": ["vespo_k_pos=1.5"]}, {"vespo_k_pos": 1.5}),
    ({"beta": 0.1}, {"beta": 0.1, "use_bias_correction_kl": False}),
    ({"beta": 0.1, "kl_gradient": "ratio"}, {"use_bias_correction_kl": True}),
    (
        {"sampler": "vllm"},
        {"use_vllm": True, "vllm_mode": "server", "vllm_importance_sampling_correction": False},
    ),
    (
        {"sampler": "vllm", "correction_mode": "truncate"},
        {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0},
    ),
    (
        {
            "sampler": "vllm",
            "correction_mode": "mask",
            "correction_level": "sequence_product",
            "correction_low": 0,
        },
        {
            "vllm_importance_sampling_mode": "sequence_mask",
            "vllm_importance_sampling_clip_min": 0.0,
            "vllm_importance_sampling_clip_max": 5.0,
        },
    ),
    (
        {"sampler": "vllm", "correction": "trl"},
        {"vllm_importance_sampling_mode": "sequence_mask", "vllm_importance_sampling_clip_max": 3.0},
    ),
    (
        {"sampler": "vllm", "correction_mode": "truncate", "correction_low": 0.5},
        {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": 0.5},
    ),
    ({"advantage_estimator": "gdpo"}, {"multi_objective_aggregation": "normalize_then_sum"}),
    ({"opsm_threshold": 0.1, "shuffle": False}, {"off_policy_mask_threshold": 0.1, "shuffle_dataset": False}),
    (
        {"lora_r": 8},
        {"use_peft": True, "lora_r": 8, "lora_dropout": 0.0, "lora_target_modules": ["all-linear"]},
    ),
    ({"dtype": "float32"}, {"bf16": False}),
    ({"dataset": "a.jsonl"}, {"datasets": [{"path": "json", "data_files": "a.jsonl", "split": "train"}]}),
    (
        {"dataset": ["math=a.jsonl:0.7", "code=org/data:main:0.3"], "num_train_epochs": 2},
        {
            "datasets": [
                {"path": "json", "data_files": "a.jsonl", "split": "train"},
                {"path": "org/data", "name": "main", "split": "train"},
            ],
            "num_train_epochs": 2.0,
            "max_steps": None,
        },
    ),
    ({"dataset": "org/data:main"}, {"dataset_name": "org/data", "dataset_config": "main"}),
    ({"model": "org/model@v2"}, {"model_name_or_path": "org/model", "model_revision": "v2"}),
    ({"reward_funcs": ["mine.py:f", "pkg.mod:g"]}, {"reward_funcs": ["mine.f", "pkg.mod.g"]}),
    (
        {"updates_per_step": 2, "num_iterations": 2, "max_steps": 10, "save_steps": 5, "warmup_steps": 1},
        {"max_steps": 40, "save_steps": 20, "warmup_steps": 4, "logging_steps": 4, "steps_per_generation": 8},
    ),
    (
        {"optim": "adamw_8bit", "lr_scheduler_type": "cosine_with_min_lr", "min_lr": 1e-7},
        {"optim": "adamw_bnb_8bit", "lr_scheduler_kwargs": {"min_lr": 1e-7}},
    ),
    (
        {"push_to_hub": "me/demo", "hub_private_repo": True, "hub_revision": "v2"},
        {
            "push_to_hub": True,
            "hub_model_id": "me/demo",
            "hub_strategy": "end",
            "hub_private_repo": True,
            "hub_revision": "v2",
        },
    ),
    ({"warmup_ratio": 0.1, "max_steps": 40, "num_iterations": 2}, {"warmup_steps": 8}),
    (
        {"lora_r": 8, "use_dora": True, "lora_modules_to_save": ["lm_head"]},
        {"use_dora": True, "lora_modules_to_save": ["lm_head"], "use_rslora": None},
    ),
]


@pytest.mark.parametrize(("values", "theirs"), VALUES, ids=[str(values) for values, _ in VALUES])
def test_a_file_keeps_its_meaning_in_trl(values, theirs):
    found, _ = back(values)
    assert {name: found.get(name) for name in theirs} == theirs


def test_the_batch_is_counted_in_devices():
    found, _ = back({"prompts_per_step": 16, "num_generations": 8, "updates_per_step": 2}, processes=4)
    device, accumulation = found["per_device_train_batch_size"], found["gradient_accumulation_steps"]
    assert device * accumulation * 4 == 64
    assert device * 4 * found["steps_per_generation"] == 128
    with pytest.raises(ValueError, match="--num_processes 3: expected a divisor of the 64 completions"):
        back({"prompts_per_step": 16, "num_generations": 8, "updates_per_step": 2}, processes=3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss_type": "gmpo"}, "loss_type: gmpo has no counterpart"),
        ({"advantage_estimator": "rloo"}, "advantage_estimator: rloo"),
        ({"kl_gradient": "k2", "beta": 0.1}, "TRL has k3 alone"),
        ({"group_filter": "f.py:f"}, "group_filter: 'f.py:f' has no counterpart"),
        ({"max_resample_times": 3}, "max_resample_times: 3 has no counterpart"),
        (
            {"sampler": "vllm", "correction_mode": "mask", "correction_level": "sequence_geometric"},
            "correction_level",
        ),
        ({"reward_funcs": ["boxed"]}, "reward_funcs: boxed"),
        ({"system_prompt": "Think."}, "system_prompt"),
        ({"dtype": "float64"}, "dtype: float64"),
    ],
)
def test_what_has_no_counterpart_is_named(values, words):
    assert any(words in note for note in back(values)[1])


def test_every_option_is_carried_over_or_named():
    """Options that are in no table are named by the last lines of `convert_to_trl`."""
    known = NOT_NEEDED | TAKEN | set(SAME) | RENAMED.keys()
    assert known <= TrainConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"loss_type": "dr_grpo"},
        {"loss_type": "luspo"},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.1},
        {"use_vllm": True},
        {"steps_per_generation": 4, "num_iterations": 2, "use_peft": True},
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 64, "num_iterations": 2},
        {"push_to_hub": True, "hub_model_id": "me/demo", "hub_private_repo": True},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 8}},
    ],
    ids=str,
)
def test_there_and_back_is_the_same_run(theirs):
    """What TRL has by default is written out on the way back."""
    trl = {"model_name_or_path": "org/model", "dataset_name": "org/data", "max_steps": 48, **theirs}
    ours, _ = convert(trl)
    again, _ = convert_to_trl(ours, "run.yaml")
    twice, _ = convert(again)
    assert {name: twice[name] for name in ours} == ours
    for name, value in trl.items():
        assert again[name] == value, name


def test_the_command_writes_a_file_for_trl(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE | {"loss_type": "dapo", "group_filter": "f.py:f"}))
    out = tmp_path / "trl.yaml"
    assert main(["convert-config", str(tmp_path / "run.yaml"), "--to", "trl", "--output", str(out)]) == 0
    assert yaml.safe_load(out.read_text())["epsilon_high"] == 0.28
    assert "note: group_filter" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text("loss_tpye: dapo\n")
    assert main(["convert-config", str(tmp_path / "run.yaml"), "--to", "trl"]) == 2
    assert "did you mean 'loss_type'" in capsys.readouterr().err
