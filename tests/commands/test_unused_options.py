"""Options that do nothing without another one are refused, from the command line as from Python."""

from __future__ import annotations

import pytest

from grpokit import GRPOTrainer
from grpokit.commands.cli import main
from grpokit.config.checks import check_train_config
from grpokit.config.yaml import to_yaml
from helpers.tiny import tiny_config

UNUSED = [
    ({"ref_model_mixup_alpha": 0.5}, "add --sync_ref_model", {"sync_ref_model": True, "beta": 0.1}),
    ({"ref_model_sync_steps": 4}, "add --sync_ref_model", {"sync_ref_model": True, "beta": 0.1}),
    ({"lora_alpha": 8.0}, "is for an adapter; add --lora_r", {"lora_r": 4}),
    ({"lora_target_modules": ("q_proj",)}, "is for an adapter; add --lora_r", {"lora_r": 4}),
    ({"lora_modules_to_save": ("lm_head",)}, "is for an adapter; add --lora_r", {"lora_r": 4}),
    ({"lora_save": "adapter"}, "is for an adapter; add --lora_r", {"lora_r": 4}),
    ({"use_rslora": True}, "is for an adapter; add --lora_r", {"lora_r": 4}),
    ({"muon_momentum": 0.9}, "is for --optim muon", {"optim": "muon"}),
    ({"max_environment_errors": 2}, "there is no --environment", {"environment": ("w.py:W",)}),
    ({"eval_top_p": 0.9}, "there is no --eval_dataset", {"eval_dataset": ("DATA",)}),
    ({"eval_stop": ("\n",)}, "there is no --eval_dataset", {"eval_dataset": ("DATA",)}),
    ({"cosine_max_len": 8}, "without the reward cosine", {"reward_funcs": ("cosine",)}),
    ({"repetition_n_grams": 2}, "without the reward repetition", {"reward_funcs": ("repetition",)}),
    ({"soft_cache_length": 2}, "without the reward soft_overlong", {"reward_funcs": ("soft_overlong",)}),
    ({"format_pattern": "x"}, "without the reward format", {"reward_funcs": ("format",)}),
    ({"judge_max_tokens": 9}, "without the reward judge", {"reward_funcs": ("judge",), "judge_url": "h:1"}),
    # The reward of an evaluation counts.
    (
        {"format_pattern": "y"},
        "without the reward format",
        {"eval_dataset": ("a=DATA",), "eval_reward_funcs": ("a=format",)},
    ),
    (
        {"judge_url": "h:1"},
        "without the reward judge",
        {"eval_dataset": ("DATA",), "eval_reward_funcs": ("judge",)},
    ),
]


@pytest.mark.parametrize(("option", "message", "used"), UNUSED)
def test_a_value_that_nothing_reads_is_refused(tmp_path, option, message, used):
    (flag,) = option
    with pytest.raises(ValueError, match=f"--{flag}\\b.*{message}"):
        check_train_config(tiny_config(tmp_path, **option))
    data = str(tmp_path / "train.jsonl")
    used = {
        name: tuple(str(each).replace("DATA", data) for each in value) if name == "eval_dataset" else value
        for name, value in used.items()
    }
    check_train_config(tiny_config(tmp_path, **option, **used))


def test_rows_in_order_do_not_go_with_an_order_of_ones_own(tmp_path):
    own = {"sampler_order": "o.py:Order"}
    check_train_config(tiny_config(tmp_path, **own))
    check_train_config(tiny_config(tmp_path, shuffle=False))
    with pytest.raises(ValueError, match="--no_shuffle: does nothing with --sampler_order"):
        check_train_config(tiny_config(tmp_path, shuffle=False, **own))


def test_the_command_line_and_python_say_the_same(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path, eval_top_p=0.9)))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    said = capsys.readouterr().err
    assert "error: --eval_top_p 0.9: is for evaluation, and there is no --eval_dataset" in said
    with pytest.raises(ValueError, match=r"eval_top_p 0\.9: is for evaluation, and there is no eval_dataset"):
        GRPOTrainer(
            model=str(tmp_path / "model"),
            reward_funcs="length",
            args=tiny_config(tmp_path, eval_top_p=0.9),
            train_dataset=[{"prompt": "1="}],
        )


def test_a_template_of_which_no_prompt_has_use_is_refused(tmp_path, capsys):
    template = tmp_path / "template.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path, chat_template=str(template))))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert f"--chat_template {template}: no prompt of --dataset is a chat" in capsys.readouterr().err


def test_a_route_that_no_row_has_is_said(tmp_path, capsys):
    routes = {"reward_funcs": ("length", "format"), "reward_routes": ("answer", "2738=length", "273=format")}
    (tmp_path / "run.yaml").write_text(to_yaml(tiny_config(tmp_path, max_steps=1, **routes)))
    (tmp_path / "train.jsonl").write_text(
        "".join(f'{{"prompt": "{n}=", "answer": "2738"}}\n' for n in range(4))
    )
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "note: --reward_routes 273: no row that was read has it in answer (did you mean '2738'?)" in said
    assert said.count("note: --reward_routes") == 1
