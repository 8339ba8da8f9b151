"""`grpokit inspect-data`, and what a run says of its rows."""

from __future__ import annotations

import json
import re

import pytest

from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from helpers.chats import user
from helpers.dataset_writing import write
from helpers.tiny import ROWS, make_model_dir, tiny_config, write_rows

# --------------------------------------------------------------------------- the command line


def test_a_run_on_a_folder_says_what_it_reads(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    write(data / "train.csv", ROWS)
    write(data / "test.parquet", ROWS[:3])
    config = tiny_config(
        tmp_path, dataset=str(data), eval_dataset=str(data), max_samples=4, max_steps=1, eval_samples=2
    )
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert (
        f"--dataset {data}: 4 rows (CSV, split train); `prompt` is text, as in TRL; columns: answer" in said
    )
    assert f"--eval_dataset {data}: 3 rows (Parquet, split test)" in said
    assert "rewards: digits_in_order (TRL's signature)" in said
    completions = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert {json.loads(line)["source"] for line in completions} == {
        f"{data}/train.csv:{line}" for line in (2, 3, 4, 5)
    }
    final = str(tmp_path / "run" / "final")
    flags = ["--reward_funcs", "exact_match", "--num_generations", "2", "--max_completion_length", "6"]
    assert main(["eval", "--model", final, "--dataset", str(data), "--max_samples", "2", *flags]) == 0
    assert "2 rows (Parquet, split test)" in capsys.readouterr().out


def test_what_is_on_the_command_line_is_refused_before_anything_loads(tmp_path, capsys):
    config = tiny_config(tmp_path)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    for flags, words in [
        (["--dataset_split", "test"], "--dataset_split test: --dataset"),
        (["--max_samples", "-1"], "--max_samples -1: must be 0 or more"),
        (["--eval_dataset", "no/thing.jsonl"], "--eval_dataset no/thing.jsonl: no such file"),
        (["--system_prompt", "hi"], "--system_prompt 'hi': no prompt of --dataset is a chat"),
        (["--reward_timeout", "-1"], "--reward_timeout -1.0: must be 0 or more"),
    ]:
        assert main(["train", "--config", str(tmp_path / "run.yaml"), *flags]) == 2
        assert words in capsys.readouterr().err


# --------------------------------------------------------------------------- inspect-data


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """sort_digits' tokenizer with a chat template that uses a special token."""
    path = make_model_dir(tmp_path_factory.mktemp("chat") / "model")
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ eos_token }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    return path


def test_inspect_data_shows_rows_as_the_model_sees_them(tmp_path, chat_model, capsys):
    rows = [{"messages": [user("31")], "solution": "13"}, {"messages": [user("254")], "solution": "245"}]
    path = write(tmp_path / "a.jsonl", rows)
    assert main(["inspect-data", str(path), "--model", str(chat_model), "--max_prompt_length", "4"]) == 0
    said = capsys.readouterr().out
    from grpokit.policy.load import load_tokenizer

    eos = load_tokenizer(str(chat_model)).eos_token
    assert f"{eos}31=" in said  # the template was applied, and the special token is there to be seen
    assert "`messages`, as in ms-swift" in said
    assert "─ a.jsonl:1, 4 tokens ─" in said
    assert re.search(r"│\s+4 │\s+4 │\s+5 │\s+5 │", said)  # min, median, p95, max of 4 and 5
    assert "1 rows are longer than --max_prompt_length 4" in said
    assert f"  {path}:2: 5 tokens" in said


def test_inspect_data_says_what_is_malformed_and_why(tmp_path, capsys):
    path = write_rows(tmp_path / "a.jsonl", [ROWS[0], "half a {", {"prompt": ""}, *ROWS[1:]])
    assert main(["inspect-data", str(path), "--rows", "1"]) == 1
    said = capsys.readouterr().out
    assert "2 rows are malformed" in said
    assert f"{path}:2: not JSON (Expecting value at character 1)" in said
    assert f'{path}:3: `prompt` is ""' in said
    assert "length of 10 prompts in characters" in said
    assert re.search(r"answer\s+│\s+10 │ str", said)


def test_inspect_data_names_what_is_not_there(tmp_path, capsys):
    assert main(["inspect-data", str(tmp_path / "no.jsonl")]) == 2
    assert "inspect-data" in capsys.readouterr().err
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    assert main(["inspect-data", str(path), "--model", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err
