"""Configurations of TRL and ms-swift in grpokit's words."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from grpokit.commands.cli import main
from grpokit.commands.convert import convert, find_trainer
from grpokit.config.foreign import NOT_NEEDED, RENAMED
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import from_yaml

TRL = {
    "model_name_or_path": "org/model",
    "dataset_name": "org/data",
    "dataset_train_split": "train",
    "reward_funcs": ["accuracy"],
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "steps_per_generation": 4,
    "num_generations": 8,
    "num_iterations": 2,
    "max_steps": 400,
    "warmup_steps": 40,
    "save_steps": 100,
    "learning_rate": 1e-6,
    "beta": 0.0,
    "loss_type": "dapo",
    "epsilon_high": 0.28,
    "scale_rewards": False,
    "bf16": True,
    "use_vllm": True,
    "vllm_server_host": "10.0.0.2",
    "vllm_server_port": 8123,
    "mask_truncated_completions": True,
    "report_to": "wandb",
    "optim": "adamw_torch",
    "log_completions": True,
    "some_new_flag": 3,
}


def test_trls_batch_and_steps_are_converted():
    """8 × 4 processes × 4 = 128 completions at once, 64 in an optimizer step: 2 updates, each passed over twice."""
    ours, said = convert(TRL, processes=4)
    assert ours["prompts_per_step"] == 16
    assert ours["updates_per_step"] == 2
    assert (ours["max_steps"], ours["warmup_steps"], ours["save_steps"]) == (100, 10, 25)
    config = from_yaml(TrainConfig, yaml.safe_dump(ours), "x.yaml")
    assert config.prompts_per_step * config.num_generations == 128
    assert (config.model, config.dataset, config.dataset_split) == ("org/model", ("org/data",), "train")
    assert (config.loss_type, config.epsilon_high, config.scale_rewards) == ("dapo", 0.28, "none")
    assert (config.dtype, config.sampler, config.vllm_url) == ("bfloat16", "vllm", "http://10.0.0.2:8123")
    assert config.mask_truncated_completions
    assert config.lr_scheduler_type == "linear"  # TRL's default, which isn't ours
    assert (config.correction_mode, config.correction_level) == ("mask", "sequence_product")
    assert (config.correction_low, config.correction_high) == (0.0, 3.0)
    assert "some_new_flag: 3 has no counterpart; left out" in said
    assert config.report_to == ("wandb",)
    assert any(sentence.startswith("optim: not needed") for sentence in said)
    assert any("400 optimizer steps are 100 steps of 4" in sentence for sentence in said)


def test_ms_swifts_names_are_converted():
    theirs = {
        "rlhf_type": "grpo",
        "model": "DIR",
        "dataset": ["train.jsonl", "more.jsonl"],
        "reward_funcs": ["accuracy", "repetition", "cosine"],
        "repetition_n_grams": 4,
        "cosine_max_len": 100,
        "cosine_min_len_value_wrong": -1.0,
        "soft_cache_length": 64,
        "dynamic_sample": True,
        "max_resample_times": 3,
        "overlong_filter": True,
        "torch_dtype": "bfloat16",
        "attn_impl": "flash_attention_2",
        "train_type": "lora",
        "lora_rank": 8,
        "system": "Think.",
    }
    ours, said = convert(theirs)
    config = from_yaml(TrainConfig, yaml.safe_dump(ours), "x.yaml")
    assert (config.model, config.dataset, config.system_prompt) == (
        "DIR",
        ("train.jsonl", "more.jsonl"),
        "Think.",
    )
    assert (config.max_resample_times, config.mask_truncated_completions) == (3, True)
    assert (config.repetition_n_grams, config.soft_cache_length) == (4, 64)
    assert config.reward_funcs == ("accuracy", "repetition", "cosine")
    assert (config.cosine_max_len, config.cosine_min_len_value_wrong) == (100, -1.0)
    assert not any("cosine_m" in sentence for sentence in said)
    assert (config.dtype, config.attn_implementation) == ("bfloat16", "flash_attention_2")
    assert any(sentence.startswith("dataset: 2 datasets are drawn from") for sentence in said)
    assert (config.lora_r, config.lora_alpha) == (8, 32.0)
    assert "correction_mode" not in ours
    for unset in ({"dynamic_sample": False}, {"dynamic_sample": None}):
        assert "max_resample_times" not in convert(theirs | unset)[0]
    assert convert({"dynamic_sample": True})[0]["max_resample_times"] == 3


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_cap": 2.5},
            {"correction_mode": "truncate", "correction_level": "token", "correction_cap": 2.5},
        ),
        (
            {"vllm_importance_sampling_mode": "token_mask", "vllm_importance_sampling_clip_min": 0.5},
            {
                "correction_mode": "mask",
                "correction_level": "token",
                "correction_low": 0.5,
                "correction_high": 3.0,
            },
        ),
        (
            {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_min": 0.5},
            {
                "correction_mode": "truncate",
                "correction_level": "token",
                "correction_cap": 3.0,
                "correction_low": 0.5,
            },
        ),
        ({"vllm_importance_sampling_correction": False}, {}),
    ],
)
def test_corrections_are_converted(theirs, ours):
    found, _ = convert({"use_vllm": True, **theirs})
    assert {name: value for name, value in found.items() if name.startswith("correction")} == ours
    without, _ = convert(theirs)  # without vLLM nothing is corrected
    assert not any(name.startswith("correction") for name in without)


QV = ["q_proj", "v_proj"]  # what peft takes where a file names none
ADAPTER_AND_ENGINE = ("lora", "sampler", "vllm", "async", "stop")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"use_peft": True}, {"lora_r": 16, "lora_target_modules": QV}),
        (
            {"use_peft": True, "lora_r": 8, "lora_alpha": 64},
            {"lora_r": 8, "lora_alpha": 64, "lora_target_modules": QV},
        ),
        (
            {"use_peft": True, "lora_target_modules": "q_proj"},
            {"lora_r": 16, "lora_target_modules": ["q_proj"]},
        ),
        ({"use_peft": False, "lora_r": 8, "lora_alpha": 64}, {}),  # there it does nothing either
        ({"tuner_type": "lora", "lora_alpha": 16}, {"lora_r": 8, "lora_alpha": 16}),  # ms-swift's rank
        ({"train_type": "full", "lora_rank": 4}, {}),
        ({"use_vllm": True}, {"sampler": "vllm", "vllm_mode": "colocate"}),  # TRL's default
        ({"use_vllm": True, "vllm_server_host": "h"}, {"sampler": "vllm", "vllm_url": "http://h:8000"}),
        ({"rlhf_type": "grpo"}, {"lora_r": 8}),  # its default
        (
            {"train_type": "full", "use_vllm": True, "vllm_server_host": "h", "async_generate": True},
            {"sampler": "vllm", "vllm_url": "http://h:8000", "async_depth": 1},
        ),
        (
            {"train_type": "full", "use_vllm": True, "vllm_mode": "colocate", "async_generate": True},
            {"sampler": "vllm", "vllm_mode": "colocate"},
        ),
        ({"train_type": "full", "stop_words": ["</answer>"]}, {"stop": ["</answer>"]}),
    ],
)
def test_adapters_and_engines_are_converted(theirs, ours):
    found, _ = convert({"vllm_importance_sampling_correction": False, **theirs}, trainer=find_trainer(theirs))
    assert {name: value for name, value in found.items() if name.startswith(ADAPTER_AND_ENGINE)} == ours
    from_yaml(TrainConfig, yaml.safe_dump(found), "x.yaml")


def test_counts_and_steps_are_converted():
    ours, _ = convert({"gradient_accumulation_steps": 4, "num_generations": 8})
    assert ours["prompts_per_step"] == 4  # 8 completions of a device, TRL's default, × 4
    ours, said = convert({"max_steps": -1, "num_train_epochs": 2})
    assert "max_steps" not in ours
    assert ours["num_train_epochs"] == 2
    ours, said = convert({"save_steps": 0.1})
    assert (
        "save_steps: 0.1 is a share of a run of unknown length; left out, set --save_steps in steps" in said
    )
    assert convert({"save_steps": 0.1, "max_steps": 200})[0]["save_steps"] == 20


def test_the_upload_to_the_hub_is_converted():
    theirs = {"push_to_hub": True, "hub_model_id": "me/demo", "hub_private_repo": True, "hub_revision": "v2"}
    ours, said = convert({**TRL, **theirs, "hub_strategy": "every_save", "hub_token": "hf_x"}, processes=4)
    assert [ours[n] for n in ("push_to_hub", "hub_private_repo", "hub_revision")] == ["me/demo", True, "v2"]
    assert "hub_strategy: not needed: --push_to_hub uploads final/, at the end" in said
    assert not any("hf_x" in sentence for sentence in said)
    ours, said = convert({**TRL, "push_to_hub": True, "hub_model_id": "demo"}, processes=4)
    assert "push_to_hub" not in ours
    assert any("push_to_hub: demo: here it is the repository's whole name, ORG/NAME" in note for note in said)
    assert (
        "push_to_hub" not in convert({**TRL, "push_to_hub": False, "hub_model_id": "me/demo"}, processes=4)[0]
    )
    _, said = convert({"rlhf_type": "grpo", "model": "DIR", "push_to_hub": True, "hub_model_id": "me/demo"})
    assert "push_to_hub: goes to the Hub of Hugging Face, not to ModelScope" in said


def test_every_name_leads_somewhere():
    fields = TrainConfig.__dataclass_fields__
    assert all(name in fields for name in RENAMED.values())
    assert not set(NOT_NEEDED) & (set(RENAMED) | set(fields))


def test_a_batch_that_does_not_fit_names_the_processes():
    with pytest.raises(
        ValueError, match=r"generation_batch_size 24: expected a multiple .* --num_processes 2 right"
    ):
        convert({"per_device_train_batch_size": 8, "generation_batch_size": 24}, processes=2)


def test_the_command_converts_a_file(tmp_path, capsys):
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump(TRL))
    assert main(["convert-config", str(tmp_path / "trl.yaml"), "--num_processes", "4"]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["prompts_per_step"] == 16
    assert "note: some_new_flag" in err
    (tmp_path / "bad.yaml").write_text("max_completion_length: many\n")
    assert main(["convert-config", str(tmp_path / "bad.yaml")]) == 0
    assert "max_completion_length: expected a whole number" in capsys.readouterr().err
    assert main(["convert-config", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read as YAML" in capsys.readouterr().err


def test_neither_help_nor_conversion_imports_torch(tmp_path):
    (tmp_path / "trl.yaml").write_text("model_name_or_path: org/model\nbeta: 0.1\nreport_to: wandb\n")
    for arguments in (
        ["--help"],
        [str(tmp_path / "trl.yaml")],
        [str(tmp_path / "trl.yaml"), "--from", "swift"],
    ):
        code = (
            "import sys; from grpokit.commands.cli import main\n"
            "try:\n    main(['convert-config', *sys.argv[1:]])\nexcept SystemExit:\n    pass\n"
            "assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
