"""The decode loop: the tokens that `generate` gives, for every architecture that it takes, in any batch."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch

from grpokit.common.noise import keyed_uniform
from grpokit.policy.architecture import obstacle
from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.rollouts import decode as decode_module
from grpokit.rollouts.decode import RoomyLayer
from grpokit.rollouts.picking import TokenPicker, inverse_cdf
from grpokit.rollouts.sampler import SamplingStopped
from grpokit.rollouts.transformers import TransformersSampler
from grpokit.types import Prompt
from helpers.architectures import SIZES, save
from helpers.places import ROOT
from helpers.tiny import make_model_dir

CPU = torch.device("cpu")
LENGTHS = [1, 9, 4, 4, 1, 6, 9, 2]
PROMPTS = [
    Prompt(i, tuple((3 * i + j) % 11 + 3 for j in range(n)), "", {}, "") for i, n in enumerate(LENGTHS)
]
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "bos_token_id": None}
HYBRID = SIZES | {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
WIDE, NARROW = {"sliding_window": 21}, {"sliding_window": 5}  # 21: the longest prompt and completion
EXACT = {
    "qwen3": ("Qwen3Config", SIZES),
    "qwen3 tied": ("Qwen3Config", SIZES | {"tie_word_embeddings": True}),
    "qwen3 eager": ("Qwen3Config", SIZES | {"attn_implementation": "eager"}),
    "llama": ("LlamaConfig", SIZES),
    "gpt2": ("GPT2Config", GPT2),
    "gemma2, window never reached": ("Gemma2Config", SIZES | WIDE),
    "gemma3, window never reached": ("Gemma3TextConfig", SIZES | WIDE | {"layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip
DETOURS = {
    "gemma2": ("Gemma2Config", SIZES | NARROW, "sliding window of 5 tokens"),
    "gemma3": ("Gemma3TextConfig", SIZES | NARROW, "sliding window of 5 tokens"),
    "mistral": ("MistralConfig", SIZES | NARROW, "sliding window of 5 tokens"),
    "mamba": ("MambaConfig", MAMBA, "position ids"),
    "qwen3 next": ("Qwen3NextConfig", HYBRID, "more than the keys and values"),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, "position ids"),
}


def policy_of(path, dtype="float64", temperature=0.9):
    return load_policy(str(path), dtype=dtype, temperature=temperature, device=CPU)


def sampler_of(policy, path, **options):
    options = {"seed": 7, "max_completion_length": 12} | options
    return TransformersSampler(policy, load_tokenizer(str(path)), **options)


def same(a, b, tolerance=1e-12):
    """Rollouts equal: tokens, reasons and texts exactly, log-probs and entropies within the tolerance."""
    a, b = ([r for group in groups for r in group.rollouts] for groups in (a, b))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.completion_ids.tolist() == y.completion_ids.tolist()
        assert (x.finish_reason, x.text) == (y.finish_reason, y.text)
        torch.testing.assert_close(x.logps, y.logps, rtol=0, atol=tolerance)
        torch.testing.assert_close(x.entropies, y.entropies, rtol=0, atol=10 * tolerance)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return save(tmp_path_factory.mktemp("m") / "qwen", "Qwen3Config", SIZES)


@pytest.mark.parametrize("name", EXACT)
def test_the_loop_gives_the_tokens_of_generate(name, tmp_path):
    path = save(tmp_path / "m", *EXACT[name])
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        policy = policy_of(path, dtype)
        if "eager" in name:  # it isn't a property of the directory
            policy.model.set_attn_implementation("eager")
        want = sampler_of(policy, path, decode="generate").sample(PROMPTS, 5)
        assert len({tuple(r.completion_ids.tolist()) for g in want for r in g.rollouts}) > 20
        assert {r.finish_reason for g in want for r in g.rollouts} == {"stop", "length"}
        for share in (True, False):
            sampler = sampler_of(policy, path, decode="loop", share_prefill=share)
            same(sampler.sample(PROMPTS, 5), want, tolerance)


@pytest.mark.parametrize("name", DETOURS)
def test_the_detour_through_generate_is_said_once(name, tmp_path, caplog):
    config, settings, reason = DETOURS[name]
    path = save(tmp_path / "m", config, settings)
    policy = policy_of(path, "float32")
    with caplog.at_level(logging.WARNING, "grpokit"):
        got = sampler_of(policy, path).sample(PROMPTS, 2)
        again = sampler_of(policy, path).sample(PROMPTS, 2)
    said = [r.message for r in caplog.records if "through generate" in r.message]
    assert len(said) == 1
    assert reason in said[0]
    same(got, again)
    same(got, sampler_of(policy, path, decode="generate").sample(PROMPTS, 2))
    with pytest.raises(ValueError, match=r"--decode loop: does not serve \w+: "):
        sampler_of(policy, path, decode="loop").sample(PROMPTS, 2)


def test_a_window_one_token_too_short_is_an_obstacle(tmp_path):
    model = policy_of(save(tmp_path / "m", "MistralConfig", SIZES | WIDE)).model
    assert obstacle(model, 21) is None
    assert "sliding window of 21 tokens, and sequences may be of 22" in obstacle(model, 22)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 256])
@pytest.mark.parametrize("share", [True, False])
def test_any_batch_gives_the_same_completions(qwen, batch_size, share):
    policy = policy_of(qwen)
    want = sampler_of(policy, qwen).sample(PROMPTS, 5)
    got = sampler_of(policy, qwen, rollout_batch_size=batch_size, share_prefill=share).sample(PROMPTS, 5)
    same(got, want)


@pytest.mark.parametrize("leave_at", [1e-9, 0.25, 2.0])
def test_finished_rows_leave_without_a_trace(qwen, leave_at, monkeypatch):
    policy = policy_of(qwen)
    want = sampler_of(policy, qwen, decode="generate", max_completion_length=45).sample(PROMPTS, 5)
    sizes = []
    step = decode_module.Completing.step
    monkeypatch.setattr(
        decode_module.Completing, "step", lambda self, ids: sizes.append(len(ids)) or step(self, ids)
    )
    monkeypatch.setattr(decode_module, "LEAVE_AT", leave_at)
    same(sampler_of(policy, qwen, max_completion_length=45).sample(PROMPTS, 5), want)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] <= 40
    assert (len(set(sizes)) > 1) == (leave_at < 1)  # and with a share over 1 nobody ever leaves


@pytest.mark.parametrize(
    "options",
    [
        {"greedy": True},
        {"min_completion_length": 5},
        {"min_completion_length": 12},
        {"max_completion_length": 1},
        {"max_completion_length": 50},
        {"num_generations": 1},
        {"prompts": PROMPTS[:1]},
        {"prompts": PROMPTS[2:4]},
        {"prompts": [PROMPTS[1], PROMPTS[1]], "num_generations": 2},
        {"prompts": []},
    ],
    ids=str,
)
def test_options_at_their_corners_give_what_generate_gives(qwen, options):
    options = dict(options)
    call = (options.pop("prompts", PROMPTS), options.pop("num_generations", 4))
    greedy = options.pop("greedy", False)
    policy = policy_of(qwen)
    got = sampler_of(policy, qwen, decode="loop", **options).sample(*call, greedy=greedy)
    same(got, sampler_of(policy, qwen, decode="generate", **options).sample(*call, greedy=greedy))
    assert [len(g.rollouts) for g in got] == [call[1]] * len(call[0])


def test_all_finish_at_the_first_token(qwen):
    policy = policy_of(qwen)
    sampler = sampler_of(policy, qwen)
    sampler.eos_ids = list(range(policy.model.config.vocab_size))  # whatever is picked ends it
    rollouts = [r for g in sampler.sample(PROMPTS, 3) for r in g.rollouts]
    assert {(len(r.completion_ids), r.finish_reason) for r in rollouts} == {(1, "stop")}


def test_a_prompt_runs_once_for_its_group(qwen, monkeypatch):
    policy = policy_of(qwen)
    shapes = []
    policy.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sampler_of(policy, qwen, max_completion_length=2, min_completion_length=2).sample(PROMPTS, 5)
    assert shapes == [(8, 9), (40, 1)]
    shapes.clear()
    sampler_of(policy, qwen, max_completion_length=2, min_completion_length=2, share_prefill=False).sample(
        PROMPTS, 5
    )
    assert shapes == [(40, 9), (40, 1)]


def test_the_model_is_left_as_it_was(qwen):
    policy = policy_of(qwen)
    for training in (True, False):
        policy.model.train(training)
        sampler_of(policy, qwen).sample(PROMPTS[:2], 2)
        assert policy.model.training is training
        assert policy.model.config._attn_implementation == "sdpa"


def test_bfloat16_compute_decodes(qwen):
    """bf16 rounds to 1/256: log-probs recorded by the loop are those of a float32 head over bf16 hidden states."""
    policy = policy_of(qwen, "bfloat16")
    for group in sampler_of(policy, qwen).sample(PROMPTS, 2):
        for rollout in group.rollouts:
            assert rollout.logps.dtype == torch.float32
            assert torch.isfinite(rollout.logps).all()
            assert (rollout.entropies >= 0).all()


def test_stop_between_batches_and_within_one(qwen):
    asked = []

    def stop_at(n):
        asked.clear()
        return lambda: asked.append(1) or len(asked) >= n

    policy = policy_of(qwen, "float32")
    policy.model.train()
    between = sampler_of(policy, qwen, rollout_batch_size=4, stop=stop_at(3))
    with pytest.raises(SamplingStopped, match="8 of 16"):
        between.sample(PROMPTS, 2)
    within = {"max_completion_length": 100, "min_completion_length": 100}
    with pytest.raises(SamplingStopped, match="64 tokens"):
        sampler_of(policy, qwen, **within, stop=stop_at(3)).sample(PROMPTS[:1], 2)
    assert policy.model.training
    assert sampler_of(policy, qwen, stop=lambda: False).sample(PROMPTS[:1], 2)


def test_any_of_several_end_tokens_ends_a_completion(tmp_path):
    path = make_model_dir(tmp_path / "m", eos_token_id=[1, 5, 6])
    policy = policy_of(path)
    got = sampler_of(policy, path).sample(PROMPTS, 8)
    same(got, sampler_of(policy, path, decode="generate").sample(PROMPTS, 8))
    last = {int(r.completion_ids[-1]) for g in got for r in g.rollouts if r.finish_reason == "stop"}
    assert {5, 6} <= last


def test_a_roomy_layer_holds_what_it_was_given():
    g = torch.Generator().manual_seed(0)
    layer, rows = RoomyLayer(), torch.tensor([1, 0, 1, 1])
    keys, values = torch.randn(2, 3, 5, 4, generator=g), torch.randn(2, 3, 5, 6, generator=g)
    layer.update(keys, values)
    layer.rebuild(rows)
    want = [keys[rows], values[rows]]
    for step in range(60):
        new = torch.randn(len(want[0]), 3, 1, 4, generator=g), torch.randn(len(want[0]), 3, 1, 6, generator=g)
        want = [torch.cat(pair, 2) for pair in zip(want, new, strict=True)]
        got = layer.update(*new)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert layer.get_seq_length() == 6 + step
        if step == 40:
            layer.rebuild(torch.tensor([3, 0]))
            want = [x[[3, 0]] for x in want]


def picker_of(rows, dtype, **options):
    options = {
        "seed": 3,
        "temperature": 0.7,
        "greedy": False,
        "eos": torch.tensor([1]),
        "min_length": 0,
    } | options
    return TokenPicker(torch.arange(rows), torch.arange(rows) % 3, 200, dtype=dtype, **options)


@pytest.mark.parametrize("vocabulary", [7, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_picker_against_its_definition(vocabulary, dtype, monkeypatch):
    """Position by position: softmax, entropy and inverse CDF as they are written, in whatever chunks it works."""
    monkeypatch.setattr("grpokit.rollouts.picking.CHUNK", {"cpu": 3 * vocabulary})
    g = torch.Generator().manual_seed(0)
    picker, rows = picker_of(8, dtype, min_length=1), torch.arange(8)
    for position in range(70):
        logits = 3 * torch.randn(len(rows), vocabulary, generator=g, dtype=dtype)
        logits[:, 2] = -torch.inf  # a model may forbid a token
        tokens = picker.pick(logits)
        logps = (logits / 0.7).log_softmax(-1)
        probs = logps.double().exp()
        entropies = torch.special.entr(probs).sum(-1)
        allowed = probs.clone()
        allowed[:, 1] *= position >= 1
        want = inverse_cdf(allowed, keyed_uniform(3, rows, rows % 3, position))
        assert tokens.tolist() == want.tolist()
        assert picker.tokens[position, rows].tolist() == want.tolist()
        of_full = logps.gather(-1, want[:, None])[:, 0]
        assert torch.equal(picker.full_logps[position, rows], of_full)
        of_allowed = (allowed.gather(-1, want[:, None])[:, 0] / allowed.sum(-1)).log().to(dtype)
        assert torch.equal(picker.logps[position, rows], of_full if position >= 1 else of_allowed)
        torch.testing.assert_close(
            picker.entropies[position, rows], entropies.to(dtype), rtol=1e-12, atol=1e-12
        )
        if position in (20, 65):  # before the noise at hand is used up, and after
            kept = torch.tensor([0, 2, 3]) if position == 20 else torch.tensor([1, 2])
            rows = rows[kept]
            picker.keep(kept)


@pytest.fixture(scope="module")
def worded(tmp_path_factory):
    """A model whose tokens are pieces of words."""
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "make_tiny_chat_model.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    tokenizer = example.make_tokenizer(example.make_rows(0, 20, 0)[0])
    return save(tmp_path_factory.mktemp("m") / "worded", "Qwen3Config", SIZES, tokenizer)


@pytest.mark.parametrize("min_length", [0, 5])
@pytest.mark.parametrize("decode", ["loop", "generate"])
def test_a_stop_string_ends_a_completion_at_its_first_place(worded, decode, min_length):
    """A completion is the one without stop strings, cut behind the first that is in it, inside a token or over several."""
    policy, tokenizer = policy_of(worded), load_tokenizer(str(worded))
    options = {"decode": decode, "min_completion_length": min_length}
    whole = sampler_of(policy, worded, **options).sample(PROMPTS, 24)
    strings = ["tt", "e", "1", " s"]
    cut = sampler_of(policy, worded, stop_strings=strings, **options).sample(PROMPTS, 24)

    def ends(ids: list[int]) -> str | None:
        """The string that ends in the last token."""
        before, after = (tokenizer.decode(part) for part in (ids[:-1], ids))
        return next((s for s in strings if s in after[max(0, len(before) - len(s) + 1) :]), None)

    ended = set()
    pairs = zip(*([r for g in groups for r in g.rollouts] for groups in (whole, cut)), strict=True)
    for without, with_ in pairs:
        ids = without.completion_ids.tolist()
        n = next((n for n in range(min_length + 1, len(ids) + 1) if ends(ids[:n])), None)
        assert with_.completion_ids.tolist() == ids[:n]
        assert with_.finish_reason == (without.finish_reason if n is None else "stop")
        torch.testing.assert_close(with_.logps, without.logps[:n], rtol=0, atol=1e-12)
        ended.add(n and ends(ids[:n]))
    assert len(ended) >= 4  # of five: it is chance which


def test_a_tokenizer_that_cannot_be_searched_is_refused(qwen):
    with pytest.raises(ValueError, match=r"--stop 5: the tokens of .* cannot be searched for strings"):
        sampler_of(policy_of(qwen), qwen, stop_strings=["5"])
