"""Tasks: seeded data byte for byte, seeded weights bit for bit, and a model that the Auto classes load."""

import hashlib
import importlib.util
import json
import random
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpokit.commands.tasks import TASKS, sort_digits, write_task
from grpokit.commands.tasks.warmup import IGNORED, Example, collate, warm_up
from helpers.places import ROOT


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """sort_digits after three warm-up steps: enough to know the files by."""
    return write_task("sort_digits", tmp_path_factory.mktemp("task"), seed=3, warmup_steps=3)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def generate(model, tokenizer, rows, **how):
    """Decoded completions of each row's prompt."""
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    out = model.generate(**inputs, max_new_tokens=7, **how)
    return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_same_seed_same_bytes_and_weights(written, tmp_path):
    again = write_task("sort_digits", tmp_path / "again", seed=3, warmup_steps=3)
    for name in ("train.jsonl", "eval.jsonl", "model/tokenizer.json", "model/model.safetensors"):
        assert (again / name).read_bytes() == (written / name).read_bytes(), name


def test_another_seed_gives_other_rows():
    assert sort_digits.make_rows(3) != sort_digits.make_rows(4)


def test_the_rows_of_a_seed_never_change():
    # Taken from the generator as first written: published runs name a seed, so its rows may not drift.
    rows = json.dumps(sort_digits.make_rows(42)).encode()
    assert (
        hashlib.sha256(rows).hexdigest() == "270db4fe28b739b7ba7dfb891409bffafe929fd5494b2315d1f52c6d7e48b35d"
    )


def test_global_random_state_is_left_alone(written, tmp_path):
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    write_task("sort_digits", tmp_path, seed=3, warmup_steps=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), torch.get_num_threads()) == before[1:]


def test_rows_are_disjoint_and_right(written):
    train, held_out = read(written / "train.jsonl"), read(written / "eval.jsonl")
    assert (len(train), len(held_out)) == (4096, 256)
    prompts = {row["prompt"] for row in held_out}
    assert len(prompts) == 256
    assert not prompts & {row["prompt"] for row in train}
    for row in train + held_out:
        assert set(row) == {"prompt", "answer"}
        digits, equals = row["prompt"][:-1], row["prompt"][-1]
        assert (equals, 2 <= len(digits) <= 5, digits.isdigit()) == ("=", True, True)
        assert row["answer"] == "".join(sorted(digits))
    shares = Counter(len(row["answer"]) for row in train)
    assert all(shares[n] > 800 for n in sort_digits.LENGTHS), shares


def test_answers_are_within_reach_of_the_reward(written):
    """The tokens of each answer decode to the very text that an exact-match reward compares with."""
    tokenizer = AutoTokenizer.from_pretrained(written / "model")
    for row in read(written / "eval.jsonl"):
        ids = [*tokenizer.encode(row["answer"]), tokenizer.eos_token_id]
        assert len(ids) <= 7  # the demo's max_completion_length
        assert tokenizer.decode(ids, skip_special_tokens=True) == row["answer"]


def test_corruption_changes_the_stated_share_of_digits():
    rng = random.Random(0)
    clean = "0123456789" * 2000
    wrong = sum(a != b for a, b in zip(clean, sort_digits.corrupt(clean, rng), strict=True))
    assert wrong / len(clean) == pytest.approx(0.25, abs=0.01)  # 3 standard deviations of 20,000 draws


def test_the_tokenizer_gives_back_the_text(written):
    tokenizer = AutoTokenizer.from_pretrained(written / "model")
    assert (len(tokenizer), tokenizer.vocab_size) == (16, 16)
    text = "3142= 1\n234"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text)  # character by character, nothing added
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([4, 5, tokenizer.eos_token_id], skip_special_tokens=True) == "12"
    assert tokenizer.encode("x") == [tokenizer.unk_token_id]
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


def test_model_loads_and_is_what_was_promised(written):
    model = AutoModelForCausalLM.from_pretrained(written / "model")
    assert 80_000 <= sum(p.numel() for p in model.parameters()) <= 90_000
    config = model.config
    assert (config.model_type, config.vocab_size, config.num_hidden_layers) == ("qwen3", 16, 2)
    assert config.tie_word_embeddings is False
    assert model.get_input_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    tokenizer = AutoTokenizer.from_pretrained(written / "model")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_only_completions_are_in_the_loss():
    inputs, labels = collate([Example([5, 6], [7, 1]), Example([8], [9])])
    assert inputs.tolist() == [[5, 6, 7, 1], [8, 9, 0, 0]]
    assert labels.tolist() == [[IGNORED, IGNORED, 7, 1], [IGNORED, 9, IGNORED, IGNORED]]


def test_progress_is_plain_without_a_terminal(capsys):
    model = sort_digits._new_model(0)
    warm_up(model, lambda: [Example([4, 13], [4, 1])], steps=6, learning_rate=1e-3, title="warming")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"warming: step {n}/6" for n in (2, 4, 6)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sort_digit", {}, "did you mean 'sort_digits'"),
        ("sort_digits", {"warmup_steps": -1}, "warmup_steps -1"),
    ],
)
def test_mistakes_in_a_task_are_named(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        write_task(name, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_output_dir_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        write_task("sort_digits", tmp_path / "taken")


# --------------------------------------------------------------------------- examples/


def example(name):
    """A file of examples/ as a module: they aren't part of the package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("completion", "reference", "reward"),
    [
        ("3 + 4 = 7\n#### 7", "3 + 4 = 7\n#### 7", 1.0),
        ("It's 7, or 8", "#### 7", 0.0),
        ("So the answer is $1,234.50.", "5 of them\n#### 1,234.5", 1.0),
        ("She has 7-4 left", "#### 4", 1.0),
        ("-3", "#### -3", 1.0),
        ("-3", "#### 3", 0.0),
        ("about .5", "#### 0.50", 1.0),
        ("no idea", "#### 0", 0.0),
        ("", "#### 0", 0.0),
        ([{"role": "assistant", "content": "It's 42."}], "#### 42", 1.0),
        ([{"role": "assistant", "content": None}], "#### 42", 0.0),
        ([], "#### 42", 0.0),
    ],
)
def test_the_gsm8k_reward_compares_final_numbers(completion, reference, reward):
    assert example("gsm8k_reward").accuracy([completion], [reference], prompts=["?"]) == [reward]


def test_gsm8k_reward_needs_a_number_to_compare_with():
    with pytest.raises(ValueError, match="expected a solution that ends in"):
        example("gsm8k_reward").accuracy(["4"], ["four"])


def test_the_tiny_chat_model_has_its_data_tokenizer_and_template(tmp_path, monkeypatch, capsys):
    """After two steps it knows nothing, but everything has its place and its format."""
    script, reward = example("make_tiny_chat_model"), example("gsm8k_reward")
    monkeypatch.setattr(sys, "argv", ["script", "--output_dir", str(tmp_path), "--steps", "2"])
    with torch.random.fork_rng(devices=[]):
        script.main()
    assert "2048 rows" in capsys.readouterr().out
    train, held_out = read(tmp_path / "train.jsonl"), read(tmp_path / "eval.jsonl")
    assert not {row["question"] for row in held_out} & {row["question"] for row in train}
    answers = [row["answer"] for row in train]
    assert reward.accuracy(answers, answers) == [1.0] * len(train)
    for row in train[:50]:
        left, result = row["answer"].splitlines()[0].split(" = ")
        a, sign, b = left.split()
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
        assert {a, b} <= set(row["question"].replace(".", "").split())

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.model_type == "qwen2"
    assert model.config.vocab_size == len(tokenizer)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": train[0]["question"]}], add_generation_prompt=True, tokenize=False
    )
    assert chat == f"<|im_start|>user\n{train[0]['question']}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(chat + "12é\n####<|im_end|>").input_ids
    assert tokenizer.decode(ids) == chat + "12é\n####<|im_end|>"
    assert ids[-1] == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [ids[0], ids[-1]]


@pytest.mark.slow
def test_full_warm_up_leaves_something_to_learn(tmp_path):
    """Sampled accuracy about 0.3 (0.29 to 0.34 over six seeds), greedy well above it."""
    output = write_task("sort_digits", tmp_path, seed=42)
    assert TASKS["sort_digits"].warmup_steps == 150
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    rows = read(output / "eval.jsonl")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sampled = generate(model, tokenizer, rows, do_sample=True, top_k=0, num_return_sequences=4)
    greedy = generate(model, tokenizer, rows, do_sample=False)
    assert 0.2 < sum(text == rows[i // 4]["answer"] for i, text in enumerate(sampled)) / 1024 < 0.45
    assert sum(text == row["answer"] for text, row in zip(greedy, rows, strict=True)) / 256 > 0.75
