"""What TRL and ms-swift do by default, and what they call by other names, in a converted file: the smallest input of each."""

from __future__ import annotations

import pytest
import yaml

from grpokit.commands.convert import convert, find_trainer
from grpokit.commands.convert.data import PLAIN_SAMPLING
from grpokit.config.foreign import FOREIGN, RENAMED
from grpokit.config.foreign_defaults import DEFAULTS
from grpokit.config.options import TrainConfig
from grpokit.config.train_rules import TRAIN_RULES
from grpokit.config.yaml import from_yaml
from grpokit.training.setup.loss import checked_loss
from helpers.tiny import write_rows

TRL = {"model_name_or_path": "org/model"}
SWIFT = {"rlhf_type": "grpo", "model": "org/model", "tuner_type": "full"}


def converted(theirs: dict, **how) -> tuple[TrainConfig, list[str]]:
    """The converted configuration, read back, checked as for a run and with its loss made, and the notes."""
    ours, said = convert(theirs, **how)
    config = from_yaml(TrainConfig, yaml.safe_dump(ours), "converted.yaml")
    for rule in TRAIN_RULES:
        rule.check(config)
    checked_loss(config)
    return config, said


def has(said: list[str], *words: str) -> bool:
    return any(all(word in note for word in words) for note in said)


# --------------------------------------------------------------------------- whose it is


@pytest.mark.parametrize(
    ("theirs", "trainer"),
    [
        ({"torch_dtype": "bfloat16", "model_name_or_path": "m"}, "trl"),  # every recipe of open-r1
        ({"torch_dtype": "bfloat16"}, "trl"),
        ({"model": "m", "torch_dtype": "bfloat16"}, "swift"),
        ({"tuner_type": "full"}, "swift"),
        ({"dataset_name": "org/data", "async_generate": False, "use_peft": True}, "trl"),
    ],
)
def test_a_file_is_told_by_the_names_that_only_one_has(theirs, trainer):
    assert find_trainer(theirs) == trainer


def test_an_open_r1_recipe_is_trls():
    config, said = converted(
        TRL
        | {
            "torch_dtype": "bfloat16",
            "bf16": True,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            "max_prompt_length": 512,
            "save_strategy": "epoch",
            "warmup_ratio": 0.1,
            "max_steps": 100,
            "num_generations": 16,
            "per_device_train_batch_size": 16,
        }
    )
    assert (config.lora_r, config.loss_type, config.sampler) == (0, "dapo", "transformers")
    assert (config.lr_scheduler_type, config.warmup_ratio) == ("cosine_with_min_lr", 0.1)
    assert config.lr_scheduler_kwargs == ("min_lr_rate=0.1",)
    assert (config.dtype, config.max_prompt_length, config.long_prompts) == ("bfloat16", 512, "truncate_left")
    assert has(said, "save_strategy: 'epoch'")


def test_options_of_the_optimizer_carry_over():
    theirs = {
        "optim": "paged_adamw_8bit",
        "beta": 0.1,
        "sync_ref_model": True,
        "ref_model_sync_steps": 64,
        "num_iterations": 2,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 20, "decay_type": "1-sqrt"},
    }
    config, said = converted(TRL | theirs)
    assert (config.optim, config.sync_ref_model, config.ref_model_sync_steps) == ("adamw_8bit", True, 32)
    assert config.lr_scheduler_kwargs == ("num_decay_steps=10", "decay_type=1-sqrt")
    assert has(said, "paged_adamw_8bit", "not paged")
    adapter = {"use_peft": True, "use_rslora": True, "lora_modules_to_save": ["lm_head"]}
    config, _ = converted(TRL | adapter)
    assert (config.use_rslora, config.use_dora, config.lora_modules_to_save) == (True, False, ("lm_head",))
    swift = {
        "kl_in_reward": True,
        "beta": 0.1,
        "optimizer": "muon",
        "freeze_parameters": ["model.embed_tokens"],
    }
    config, _ = converted(SWIFT | swift)
    assert (config.kl_in_reward, config.beta, config.optim) == (True, 0.1, "muon")
    assert config.freeze_parameters == (r"^model\.embed_tokens",)


def test_whose_it_is_may_be_said():
    assert convert({"beta": 0.1}, trainer="swift")[0]["temperature"] == 0.9
    assert has(convert({"beta": 0.1})[1], "nothing here says whose", "--from swift")


# --------------------------------------------------------------------------- TRL's defaults

TRL_VALUES = [
    ({}, {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.2}),
    ({"loss_type": "dapo", "epsilon": 0.1}, {"epsilon": 0.1, "epsilon_high": 0.1}),
    ({"epsilon_high": 0.28}, {"epsilon": 0.2, "epsilon_high": 0.28}),
    (
        {},
        {
            "max_completion_length": 512,
            "lr_scheduler_type": "linear",
            "prompts_per_step": 1,
            "dtype": "bfloat16",
        },
    ),
    ({"bf16": False}, {"dtype": "float32"}),
    ({"fp16": True}, {"dtype": "auto"}),
    (
        {"loss_type": "dr_grpo"},
        {"loss_type": "grpo", "reduction": "constant_length", "scale_rewards": "group"},
    ),
    ({"loss_type": "dr_grpo", "scale_rewards": False}, {"loss_type": "dr_grpo", "scale_rewards": None}),
    ({"loss_type": "dr_grpo", "scale_rewards": "batch"}, {"loss_type": "dr_grpo", "scale_rewards": "batch"}),
    ({"loss_type": "luspo"}, {"loss_type": "grpo", "reduction": "sequence_sum", "epsilon": 0.2}),
    (
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"loss_type": "luspo", "reduction": None, "epsilon": 0.2, "epsilon_high": 0.2},
    ),
    ({"loss_type": "cispo", "epsilon_high": 5.0}, {"loss_type": "cispo", "epsilon_high": 5.0}),
    (
        {"loss_type": "cispo", "beta": 0.1},
        {"loss_type": "reinforce", "max_grad_norm": 5.0, "adam_epsilon": 5e-8, "beta": 0.5},
    ),
    ({"loss_type": "sapo", "sapo_temperature_neg": 2.0}, {"tau_neg": 2.0, "epsilon": None}),
    ({"beta": 0.1}, {"kl_gradient": "ratio"}),
    ({"beta": 0.1, "use_bias_correction_kl": False}, {"kl_gradient": None}),
    ({"beta": 0.0}, {"kl_gradient": None}),
    ({"off_policy_mask_threshold": 0.5}, {"opsm_threshold": 0.5}),
    (
        {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "group"},
        {"advantage_estimator": "gdpo", "scale_rewards": None},
    ),
    ({"loss_type": "vespo", "vespo_k_pos": 1.5}, {"loss_kwargs": ("vespo_k_pos=1.5",), "epsilon": None}),
    ({"shuffle_dataset": False}, {"shuffle": False}),
    ({"top_entropy_quantile": 1.0}, {"top_entropy_quantile": None}),
    ({"use_peft": True}, {"lora_r": 16, "lora_alpha": 32.0, "lora_target_modules": ("q_proj", "v_proj")}),
    ({"model_init_kwargs": {"attn_implementation": "eager"}}, {"attn_implementation": "eager"}),
    ({"model_revision": "v2"}, {"model": "org/model@v2"}),
    ({"dataset_name": "org/data", "dataset_config": "main"}, {"dataset": ("org/data:main",)}),
    ({"datasets": [{"path": "json", "data_files": "d.jsonl"}]}, {"dataset": ("d.jsonl",)}),
    ({"datasets": [{"path": "org/a", "name": "x"}, {"path": "org/b"}]}, {"dataset": ("org/a:x", "org/b")}),
    (
        {"datasets": [{"path": "json", "data_files": ["a/d.jsonl", "b/d.jsonl"]}]},
        {"dataset": ("d1=a/d.jsonl", "d2=b/d.jsonl")},
    ),
    (
        {"dataset_name": "org/data", "eval_strategy": "steps", "eval_steps": 20, "dataset_test_split": "dev"},
        {"eval_dataset": ("org/data",), "eval_split": "dev", "eval_steps": 20},
    ),
    ({"dataset_name": "org/data", "dataset_test_split": "dev"}, {"eval_dataset": (), "eval_steps": 0}),
    (
        {"dataset_name": "org/data", "eval_strategy": False, "save_strategy": False},
        {"eval_dataset": (), "save_steps": 0},
    ),
    ({}, {"save_steps": 500}),
    ({"save_strategy": "no", "save_steps": 50}, {"save_steps": 0}),
    ({"max_steps": 200, "save_steps": 0.05}, {"save_steps": 10}),
    (
        {"reward_funcs": ["accuracy_reward", "rewards.mine.short"]},
        {"reward_funcs": ("accuracy", "rewards.mine:short")},
    ),
    ({"generation_kwargs": {"stop_strings": ["\n"]}}, {"stop": ("\n",)}),
    ({"top_p": 0.9, "top_k": 20, "min_p": 0.05}, {"top_p": 0.9, "top_k": 20, "min_p": 0.05}),
    ({"generation_kwargs": {"repetition_penalty": 1.1}}, {"repetition_penalty": 1.1}),
    (
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": ("enable_thinking=false",)},
    ),
    (
        {"gradient_accumulation_steps": 4, "steps_per_generation": 2},
        {"prompts_per_step": 4, "updates_per_step": 1},
    ),
    (
        {"steps_per_generation": 8, "per_device_train_batch_size": 2},
        {"prompts_per_step": 2, "updates_per_step": 2},
    ),
]


@pytest.mark.filterwarnings("ignore:epsilon 0.2. the ratio of loss_type luspo")  # TRL's epsilon, all the same
@pytest.mark.parametrize(("theirs", "ours"), TRL_VALUES, ids=[str(theirs) for theirs, _ in TRL_VALUES])
def test_a_file_of_trl_keeps_its_meaning(theirs, ours):
    config, _ = converted(TRL | theirs)
    assert {name: getattr(config, name) for name in ours} == ours


def test_cispos_cap_is_explained():
    said = converted(TRL | {"loss_type": "cispo"})[1]
    assert has(
        said, "epsilon_high, which is 0.2 in TRL where it is not set", "× 5", "cispo with epsilon_high 5"
    )


def test_defaults_are_named_in_one_note():
    said = converted(TRL | {"max_completion_length": 64})[1]
    note = next(note for note in said if note.startswith("defaults of TRL's"))
    assert "epsilon_high 0.2" in note
    assert "loss_type dapo" in note
    assert "max_completion_length" not in note


def test_a_vllm_run_of_trl_is_corrected_by_its_default():
    config, _ = converted(TRL | {"use_vllm": True})
    assert (config.correction_mode, config.correction_level) == ("mask", "sequence_product")
    assert (config.correction_low, config.correction_high) == (0.0, 3.0)
    assert (
        convert(TRL | {"use_vllm": True, "vllm_importance_sampling_correction": False})[0]
        .keys()
        .isdisjoint({"correction_mode", "correction_level"})
    )


# --------------------------------------------------------------------------- ms-swift's

SWIFT_VALUES = [
    ({}, {"loss_type": "grpo", "beta": 0.04, "learning_rate": 1e-5, "temperature": 0.9, "adam_beta2": 0.95}),
    (
        {},
        {
            "weight_decay": 0.1,
            "lr_scheduler_type": "cosine",
            "max_completion_length": 512,
            "kl_gradient": None,
        },
    ),
    ({"tuner_type": "lora"}, {"learning_rate": 1e-4, "lora_r": 8, "lora_target_modules": ("all-linear",)}),
    (
        {"loss_type": "dr_grpo"},
        {"loss_type": "grpo", "reduction": "constant_length", "scale_rewards": "group"},
    ),
    ({"loss_type": ["dapo"]}, {"loss_type": "dapo", "epsilon_high": 0.2}),
    ({"scale_rewards": "gdpo"}, {"advantage_estimator": "gdpo", "scale_rewards": None}),
    ({"advantage_estimator": "grpo"}, {"advantage_estimator": "group", "scale_rewards": "group"}),
    ({"advantage_estimator": "rloo"}, {"advantage_estimator": "rloo", "scale_rewards": None}),
    ({"packing": True}, {"packing": "auto"}),
    ({"padding_free": True}, {"packing": "auto"}),
    (
        {"use_vllm": True, "vllm_mode": "colocate", "rollout_importance_sampling_mode": "token_truncate"},
        {"correction_mode": "truncate", "correction_level": "token", "correction_cap": 2.0},
    ),
    (
        {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "rollout_importance_sampling_mode": "sequence_mask",
            "rollout_importance_sampling_threshold": 3.0,
        },
        {
            "correction_mode": "truncate",
            "correction_level": "token",
            "correction_keep": "sequence_geometric",
            "correction_keep_high": 3.0,
        },
    ),
    ({"use_vllm": True, "vllm_mode": "colocate"}, {"correction_mode": None, "vllm_mode": "colocate"}),
    ({"off_policy_sequence_mask_delta": 0.1}, {"opsm_threshold": 0.1}),
    ({"loss_type": "real", "real_tau": 0.7}, {"loss_kwargs": ("real_tau=0.7",), "scale_rewards": "none"}),
    (
        {"loss_type": "fipo", "fipo_decay_rate": 1.0, "fipo_clip_range": 0.5, "fipo_clip_high_only": False},
        {"loss_kwargs": ("fipo_gamma=0.5", "fipo_high=1.5", "fipo_low=0.5"), "epsilon_high": 0.2},
    ),
    ({"loss_type": "fipo", "fipo_safety_threshold": 3.0}, {"loss_kwargs": ("fipo_safe_ratio=3.0",)}),
    ({"max_new_tokens": 99}, {"max_completion_length": 99}),
    ({"response_length": 77, "max_new_tokens": 99}, {"max_completion_length": 77}),  # its order
    ({"truncation_strategy": "delete"}, {"long_prompts": "drop"}),
    ({}, {"long_prompts": "truncate_left"}),
    ({"dataset": "org/data#1000"}, {"dataset": ("org/data",), "max_samples": 1000}),
    ({"lazy_tokenize": True}, {"lazy_tokenize": "always"}),
    ({"dataset": ["HF::org/data:main#5"]}, {"dataset": ("org/data:main",), "max_samples": 5}),
    ({"attn_impl": "flash_attn"}, {"attn_implementation": "flash_attention_2"}),
    (
        {
            "use_vllm": True,
            "vllm_mode": "server",
            "vllm_server_host": ["a", "b"],
            "vllm_server_port": [8001, 8002],
        },
        {"vllm_url": "http://a:8001"},
    ),
    (
        {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": ["http://a:1"]},
        {"vllm_url": "http://a:1"},
    ),
    ({"dataset_shuffle": False}, {"shuffle": False}),
    ({"train_dataloader_shuffle": False}, {"shuffle": False}),
    ({"system": "Think.\\nThen answer."}, {"system_prompt": "Think.\nThen answer."}),
    ({"reward_funcs": "format"}, {"format_pattern": r"^<think>.*?</think>\s*<answer>.*?</answer>(?![\s\S])"}),
    ({"loss_type": "cispo"}, {"loss_type": "reinforce", "max_grad_norm": 5.0, "beta": 0.2}),
]


@pytest.mark.parametrize(("theirs", "ours"), SWIFT_VALUES, ids=[str(theirs) for theirs, _ in SWIFT_VALUES])
def test_a_file_of_ms_swift_keeps_its_meaning(theirs, ours):
    config, _ = converted(SWIFT | theirs)
    assert {name: getattr(config, name) for name in ours} == ours


def test_a_system_prompt_may_be_a_file(tmp_path):
    (tmp_path / "system.txt").write_text("Think first.\n")
    config, _ = converted(SWIFT | {"system": "system.txt"}, folder=tmp_path)
    assert config.system_prompt == "Think first.\n"
    config, said = converted(SWIFT | {"system": "elsewhere.txt"}, folder=tmp_path)
    assert config.system_prompt == ""
    assert has(said, "system: elsewhere.txt", "no such file")


def test_a_plugins_rewards_are_found(tmp_path):
    (tmp_path / "plugin.py").write_text("class Countdown: ...\norms['external_countdown'] = Countdown\n")
    theirs = SWIFT | {"external_plugins": "plugin.py", "reward_funcs": ["external_countdown", "other"]}
    config, said = converted(theirs, folder=tmp_path)
    assert config.reward_funcs == ("plugin.py:Countdown", "other")
    assert has(said, "reward_funcs: other is not built in")


# --------------------------------------------------------------------------- what has no counterpart


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (
            TRL | {"lr_scheduler_type": "reduce_lr_on_plateau"},
            ("lr_scheduler_type", "evaluations", "left out"),
        ),
        (TRL | {"num_beams": 4}, ("num_beams", "left out")),
        (
            TRL | {"use_vllm": True, "top_p": 0.9},
            (
                "vllm_importance_sampling_mode: top_p makes completions come from another distribution",
                "left out",
            ),
        ),
        (TRL | {"sync_ref_model": True}, ("sync_ref_model: does nothing without beta",)),
        (TRL | {"optim": "adafactor"}, ("optim: 'adafactor'", "muon")),
        (TRL | {"beta": "much"}, ("beta: 'much' is no number",)),
        (SWIFT | {"freeze_parameters_ratio": 0.5}, ("freeze_parameters_ratio: 0.5",)),
        (SWIFT | {"multi_turn_scheduler": "x"}, ("multi_turn_scheduler: 'x' has no counterpart",)),
        (SWIFT | {"truncation_strategy": "right"}, ("truncation_strategy: 'right'",)),
        (SWIFT | {"split_dataset_ratio": 0.1}, ("split_dataset_ratio: 0.1",)),
        (SWIFT | {"loss_type": "grpo", "real_tau": 0.7}, ("real_tau: 0.7 does nothing",)),
    ],
)
def test_one_value_never_stops_the_file(theirs, words):
    config, said = converted(theirs | {"seed": 7})
    assert config.seed == 7
    assert has(said, *words)


KNOWN = sorted(
    FOREIGN | RENAMED.keys() | DEFAULTS["trl"].keys() | DEFAULTS["swift"].keys() | set(PLAIN_SAMPLING)
)


@pytest.mark.parametrize("trainer", ["trl", "swift"])
@pytest.mark.parametrize("value", ["odd", [1, "x"], {"a": 1}, -1.5], ids=str)
def test_no_value_of_any_option_stops_the_file(trainer, value):
    """Only a batch that fits no number of processes does."""
    for name in KNOWN:
        try:
            convert({"loss_type": "cispo", "use_vllm": True, "use_peft": True, name: value}, 8, trainer)
        except ValueError as error:
            assert "is --num_processes 8 right?" in str(error), name  # noqa: PT017 (it needn't be raised)


def test_values_that_change_nothing_are_not_named():
    said = converted(TRL | {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0})[1]
    assert not has(said, "top_p")
    assert not has(said, "repetition_penalty")


# --------------------------------------------------------------------------- epochs


def test_epochs_become_steps_where_the_rows_are_here(tmp_path):
    """10 rows, 2 prompts a step: 5 steps an epoch."""
    rows = write_rows(tmp_path / "train.jsonl", [{"prompt": f"{n}="} for n in range(10)])
    theirs = TRL | {"datasets": [{"path": "json", "data_files": str(rows)}], "gradient_accumulation_steps": 2}
    config, said = converted(theirs)
    assert (config.prompts_per_step, config.max_steps) == (2, 15)  # three epochs are the default
    assert has(said, "max_steps: 3 epochs of 10 rows are 15 steps of 2 prompts")
    config, _ = converted(theirs | {"num_train_epochs": 1, "warmup_ratio": 0.2, "save_strategy": "epoch"})
    assert (config.max_steps, config.warmup_ratio, config.save_steps) == (5, 0.2, 5)
    config, _ = converted(SWIFT | {"dataset": f"{rows}", "num_train_epochs": 2}, processes=8)
    assert config.max_steps == 20
    config, _ = converted(SWIFT | {"dataset": "org/data#40", "num_train_epochs": 1}, processes=16)
    assert config.max_steps == 20


def test_epochs_of_rows_elsewhere_are_named():
    config, _ = converted(TRL | {"dataset_name": "org/data", "num_train_epochs": 2})
    assert (config.num_train_epochs, config.max_steps) == (2.0, 100)


# --------------------------------------------------------------------------- columns, shares, the best model


def test_columns_of_ms_swift_are_named():
    for columns in ({"problem": "query", "final": "solution"}, '{"problem": "query", "final": "solution"}'):
        config, said = converted(SWIFT | {"columns": columns})
        assert (config.prompt_column, config.answer_column) == ("problem", "final")
        assert has(said, "answer_column", "as final, not as solution")
    assert has(
        converted(SWIFT | {"columns": {"a": "images"}})[1], "columns: {'a': 'images'} has no counterpart"
    )
    assert has(converted(SWIFT | {"columns": "odd"})[1], "columns: 'odd' is no mapping")


def test_shares_of_datasets_are_weights():
    config, said = converted(SWIFT | {"dataset": ["a.jsonl", "org/b"], "interleave_prob": [0.7, 0.3]})
    assert config.dataset == ("a.jsonl:0.7", "org/b:0.3")
    assert not has(said, "in proportion to their rows")
    config, said = converted(SWIFT | {"dataset": ["a.jsonl", "org/b"], "interleave_prob": [0.7]})
    assert config.dataset == ("a.jsonl", "org/b")
    assert has(said, "interleave_prob: [0.7] does not fit 2 datasets")
    assert has(said, "in proportion to their rows")


def test_the_end_of_a_run_that_no_longer_improves_carries_over():
    held_out = SWIFT | {"val_dataset": "v.jsonl", "eval_steps": 5, "early_stop_interval": 3}
    config, said = converted(
        held_out | {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward"}
    )
    assert config.early_stop == "eval/reward:3"
    assert has(said, "load_best_model_at_end: best/ has the model of the best eval/reward")
    assert not has(said, "metric_for_best_model")
    config, said = converted(SWIFT | {"early_stop_interval": 3, "metric_for_best_model": "loss"})
    assert config.early_stop == ""
    assert has(said, "early_stop_interval: 3 needs evaluations")
    assert has(said, "metric_for_best_model: 'loss' has no counterpart")
