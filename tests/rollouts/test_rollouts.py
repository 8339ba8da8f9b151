"""Rollouts: tokens that depend on their key alone, and log-probs of the whole distribution."""

from __future__ import annotations

import pytest
import torch

from grpokit.common.noise import keyed_uniform
from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.rollouts.picking import inverse_cdf
from grpokit.rollouts.transformers import TransformersSampler
from grpokit.rollouts.written import written_text
from grpokit.types import Prompt
from helpers.chats import characters
from helpers.tiny import make_model_dir

CPU = torch.device("cpu")
PROMPTS = [Prompt(i, tuple(range(3, 4 + i % 4)), "", {}, f"t:{i}") for i in range(8)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model whose shipped generation_config would change both tokens and log-probs, if it acted."""
    path = tmp_path_factory.mktemp("m") / "model"
    return make_model_dir(
        path, top_k=5, repetition_penalty=1.3, do_sample=True, temperature=0.3, min_length=4
    )


def sampler_of(directory, dtype="float32", temperature=0.8, **options):
    policy = load_policy(str(directory), dtype=dtype, temperature=temperature, device=CPU)
    options = {"seed": 7, "max_completion_length": 12} | options
    return TransformersSampler(policy, load_tokenizer(str(directory)), **options)


def fresh_logps(policy, prompt, rollout):
    """Log-probs and entropies [T] by a forward over prompt and completion, nothing shared with the sampler."""
    with torch.no_grad(), policy.computing():
        ids = torch.cat([torch.tensor(prompt.ids), rollout.completion_ids])[None]
        logits = policy.model(input_ids=ids).logits[0, len(prompt.ids) - 1 : -1]
    logps = torch.log_softmax(logits.double() / policy.temperature, -1)
    return logps.gather(-1, rollout.completion_ids[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_completions_in_any_batch_size(directory, dtype):
    runs = []
    for batch_size in (1, 7, 64):
        sampler = sampler_of(directory, dtype, rollout_batch_size=batch_size)
        runs.append([r.completion_ids.tolist() for g in sampler.sample(PROMPTS, 8) for r in g.rollouts])
    assert runs[0] == runs[1] == runs[2]
    assert len({tuple(c) for c in runs[0]}) > 40  # and they're not all the same


def test_a_prompt_keeps_its_completions_wherever_it_stands(directory):
    sampler = sampler_of(directory, "float64")
    alone = sampler.sample(PROMPTS[5:6], 3)[0]
    among = sampler.sample(PROMPTS, 3)[5]
    for a, b in zip(alone.rollouts, among.rollouts, strict=True):
        assert a.completion_ids.tolist() == b.completion_ids.tolist()


@pytest.mark.parametrize("min_length", [0, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
def test_recorded_logps_are_a_fresh_forwards(directory, min_length, dtype, tolerance):
    sampler = sampler_of(directory, dtype, min_completion_length=min_length)
    for group in sampler.sample(PROMPTS, 4):
        for rollout in group.rollouts:
            logps, entropies = fresh_logps(sampler.policy, group.prompt, rollout)
            # A ban renormalises what is left; see test_shaping.py.
            full = rollout.full_logps if min_length else rollout.logps
            torch.testing.assert_close(full.double(), logps, rtol=0, atol=tolerance)
            torch.testing.assert_close(rollout.entropies.double(), entropies, rtol=0, atol=10 * tolerance)
            assert rollout.logps.dtype == getattr(torch, dtype)


def test_completions_end_once_and_not_too_early(directory):
    sampler = sampler_of(directory, min_completion_length=3, temperature=3.0)
    rollouts = [r for g in sampler.sample(PROMPTS, 16) for r in g.rollouts]
    eos = torch.tensor(sampler.eos_ids)
    for r in rollouts:
        ends = torch.isin(r.completion_ids, eos)
        assert not ends[:-1].any()
        assert bool(ends[-1]) == (r.finish_reason == "stop")
        assert len(r.completion_ids) > 3 if r.finish_reason == "stop" else len(r.completion_ids) == 12
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}


def test_the_shipped_generation_config_is_still_there_afterwards(directory):
    sampler = sampler_of(directory)
    sampler.sample(PROMPTS[:1], 1)
    assert sampler.policy.model.generation_config.top_k == 5


def test_greedy_takes_the_likeliest_token(directory):
    sampler = sampler_of(directory, "float64")
    group = sampler.sample(PROMPTS[:1], 2, greedy=True)[0]
    ids = torch.tensor(PROMPTS[0].ids)
    for token in group.rollouts[0].completion_ids:
        with torch.no_grad(), sampler.policy.computing():
            assert int(sampler.policy.model(input_ids=ids[None]).logits[0, -1].argmax()) == int(token)
        ids = torch.cat([ids, token[None]])
    assert group.rollouts[0].completion_ids.tolist() == group.rollouts[1].completion_ids.tolist()


def test_sampled_frequencies_follow_the_distribution(directory):
    """4,096 first tokens of one prompt against the model's own probabilities: chi-square under its 99.99% quantile."""
    sampler = sampler_of(directory, temperature=1.0, max_completion_length=1, rollout_batch_size=4096)
    rollouts = sampler.sample(PROMPTS[:1], 4096)[0].rollouts
    counts = torch.bincount(torch.stack([r.completion_ids[0] for r in rollouts]), minlength=16).double()
    with torch.no_grad():
        probs = (
            sampler.policy.model(input_ids=torch.tensor([PROMPTS[0].ids])).logits[0, -1].double().softmax(-1)
        )
    chi2 = float(((counts - 4096 * probs) ** 2 / (4096 * probs)).sum())
    assert chi2 < 44.3  # chi-square with 15 degrees of freedom, 99.99%


def test_noise_is_uniform_and_keyed():
    grid = [torch.arange(40).reshape([-1 if i == d else 1 for i in range(3)]) for d in range(3)]
    u = keyed_uniform(1, *grid)
    assert u.shape == (40, 40, 40)
    assert u.unique().numel() == u.numel()
    assert 0 <= float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.005  # 4 standard errors of 64,000 uniforms
    flat = u - 0.5
    for dim in range(3):  # neighbours in any part of the key are uncorrelated
        a, b = flat.narrow(dim, 0, 39), flat.narrow(dim, 1, 39)
        assert abs(float((a * b).mean() * 12)) < 0.02
    assert not torch.equal(u, keyed_uniform(2, *grid))
    assert keyed_uniform(1, 2, 3) != keyed_uniform(1, 3, 2)


def splitmix(*key):
    """The hash once more, in Python's own integers: what int64 tensors must reproduce bit for bit."""
    bits, state = 2**64 - 1, 0
    for part in key:
        state = (state + (part + 1) * 0x9E3779B97F4A7C15) & bits
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & bits
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & bits
        state ^= state >> 31
    return (state >> 11) / 2**53


def test_noise_is_the_hash_it_says():
    for key in [(42, 0, 0, 1), (42, 1, 0, 1), (0, 0, 0, 0), (2**40, 3, 7, 100_000)]:
        assert float(keyed_uniform(*key)) == splitmix(*key)


def test_inverse_cdf_at_its_edges():
    probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    points = {0.0: 1, 0.2499: 1, 0.25: 3, 1 - 2**-53: 3}
    for u, token in points.items():
        assert int(inverse_cdf(probs, torch.tensor([u], dtype=torch.float64))) == token
        assert int(inverse_cdf(probs / 3, torch.tensor([u], dtype=torch.float64))) == token


@pytest.mark.parametrize("decode", ["loop", "generate"])
def test_special_tokens_that_the_model_wrote_are_in_the_text(directory, decode):
    """Here every digit is a special token, as <think> is for some models. Only the end of sequence is cut."""
    sampler = sampler_of(directory, decode=decode)
    vocabulary = sampler.tokenizer.convert_ids_to_tokens(range(len(sampler.tokenizer)))
    digits = [token for token in vocabulary if token.isdigit()]
    sampler.tokenizer.add_special_tokens({"additional_special_tokens": digits})
    rollouts = [r for g in sampler.sample(PROMPTS, 8) for r in g.rollouts]
    assert any(any(digit in r.text for digit in digits) for r in rollouts)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for r in rollouts:
        written = r.completion_ids.tolist()[: -1 if r.finish_reason == "stop" else None]
        tokens = sampler.tokenizer.convert_ids_to_tokens(written)
        assert r.text == "".join(tokens).removesuffix(sampler.tokenizer.pad_token)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("<think>4</think>", "<think>4</think>"),
        ("4<eos>", "4"),
        ("4<eos>5", "4"),
        ("4<pad><pad>", "4"),
        ("4<pad><eos><pad>", "4"),
        ("<unk>4", "<unk>4"),
        ("", ""),
    ],
)
def test_a_text_ends_before_its_end_of_sequence_and_padding(written, text):
    tokenizer = characters()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = tokenizer(written)["input_ids"]
    assert written_text(tokenizer, ids, [tokenizer.eos_token_id]) == text
