"""A reward model: what it scores, that the batch doesn't matter, and which directories are refused."""

from __future__ import annotations

import json

import pytest
import torch

from grpokit.commands.tasks import sort_digits
from grpokit.rewards import RewardError, describe_rewards, score
from grpokit.rewards.model import load_reward_model
from helpers.completions import group, load
from helpers.refusals import refuses

TEMPLATE = "{% for m in messages %}{{ m.content }}={% endfor %}"
TEXTS = ["1", "13", "31=13", "9081", "0", "55555555"]


def make(path, labels: int = 1, template: str = "", pad: bool = True):
    """A tiny Qwen3 classifier with sort_digits' tokenizer."""
    from transformers import Qwen3Config, Qwen3ForSequenceClassification

    tokenizer = sort_digits.make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=16,
        initializer_range=0.5,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id if pad else None,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        Qwen3ForSequenceClassification(config).save_pretrained(path)
    if template:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make(tmp_path_factory.mktemp("rm") / "judge")


def test_it_is_the_models_own_output(model):
    """Prompt and completion as one text, each alone and without padding, by transformers itself."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = [plain(**tokenizer("31=" + text, return_tensors="pt")).logits.item() for text in TEXTS]
    rewards = load(str(model))
    assert describe_rewards(rewards) == "rewards: judge (a reward model)"
    (done,) = score([group(*TEXTS, content="31=")], rewards)
    assert done.reward.tolist() == pytest.approx(wanted, abs=1e-5)
    assert len(set(wanted)) == len(TEXTS)


@pytest.mark.parametrize("pad", [True, False])
def test_the_batch_does_not_matter(tmp_path, pad):
    path = make(tmp_path / "rm", pad=pad)
    judge = load_reward_model(str(path))
    together = judge(["31="] * len(TEXTS), TEXTS)
    alone = [judge(["31="], [text])[0] for text in TEXTS]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_chat_goes_through_its_own_template(tmp_path):
    judge = load_reward_model(str(make(tmp_path / "rm", template=TEMPLATE)))
    chat = [{"role": "user", "content": "31"}]
    answer = [{"role": "assistant", "content": "13"}]
    as_text = judge(["31="], ["13="])
    assert judge([chat], [answer]) == pytest.approx(as_text)
    prefilled = [*chat, {"role": "assistant", "content": "1"}]
    assert judge([prefilled], [[{"role": "assistant", "content": "3"}]]) == pytest.approx(as_text)


def test_what_it_cannot_score_is_named(model):
    rewards = load(str(model))
    chat = group("1", content=[{"role": "user", "content": "31"}])
    refuses(
        lambda: score([chat], rewards),
        "the prompt is a chat, and the reward model's tokenizer has no chat template",
        kind=RewardError,
    )
    refuses(
        lambda: score([group("1" * 20)], rewards),
        "tokens of prompt and completion are over the reward model's context of 16",
        kind=RewardError,
    )


def test_it_is_loaded_once(model):
    assert load(str(model))[0].fn is load(str(model))[0].fn


def test_directories_that_are_no_reward_model(tmp_path, model):
    two = make(tmp_path / "two", labels=2)
    refuses(lambda: load(str(two)), f"--reward_funcs {two}: has 2 labels; expected the directory of")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    refuses(lambda: load(str(other)), f"--reward_funcs {other}: its config.json says Qwen3ForCausalLM")
    (other / "config.json").write_text("{")
    refuses(lambda: load(str(other)), f"--reward_funcs {other}: config.json: ")
    (other / "config.json").write_text((model / "config.json").read_text())
    refuses(lambda: load(str(other)), f"--reward_funcs {other}: cannot be loaded: ")


def test_weights_without_a_head_would_be_noise(tmp_path, model):
    from safetensors.torch import load_file, save_file

    headless = make(tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "score.weight"},
        headless / "model.safetensors",
        {"format": "pt"},
    )
    refuses(lambda: load(str(headless)), f"--reward_funcs {headless}: its weights lack score.weight")
