"""Truncation, penalties and bans: what is sampled, what is recorded of it, and what a run does with that."""

from __future__ import annotations

import itertools

import pytest
import torch

from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.rollouts.picking import TokenPicker
from grpokit.rollouts.shaping import FULL, Shaping, truncate
from grpokit.rollouts.transformers import TransformersSampler
from grpokit.types import Prompt
from helpers.shaped import reference
from helpers.tiny import make_model_dir

EOS = [7, 8]
KINDS = [
    Shaping(*each) for each in itertools.product((1.0, 0.9, 0.4), (0, 1, 5, 60), (0.0, 0.1), (1.0, 1.3, 0.8))
]


def test_the_recorded_log_probs_and_the_support_are_those_of_a_float64_reference():
    generator = torch.Generator().manual_seed(1)
    read = [[1, 2, 3], [4], [5, 49, 7], [0]]
    for number, shaping in enumerate(KINDS):
        logits = 3 * torch.randn(4, 50, generator=generator)
        bans = number % 2
        picker = TokenPicker(
            torch.arange(4),
            torch.zeros(4, dtype=torch.int64),
            40,
            seed=number,
            temperature=0.7,
            greedy=False,
            eos=torch.tensor(EOS),
            min_length=40 * bans,
            dtype=torch.float32,
            shaping=shaping,
            read=read,
        )
        seen = [list(row) for row in read]
        for place in range(40):
            want = [reference(x, 0.7, shaping, s, EOS * bans)[0] for x, s in zip(logits, seen, strict=True)]
            tokens = picker.pick(logits)
            for b, token in enumerate(tokens.tolist()):
                assert float(picker.logps[place, b]) == pytest.approx(float(want[b][token]), abs=1e-5)
                seen[b].append(token)
        of_full = (logits.double() / 0.7).log_softmax(-1)
        if shaping.penalizes or (shaping == FULL and not bans):
            assert picker.full_logps is None
        else:
            found = of_full.gather(-1, picker.tokens.T).T.float()
            torch.testing.assert_close(picker.full_logps, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shaping", [k for k in KINDS if k.truncates and not k.penalizes], ids=repr)
def test_the_support_is_exact_also_where_logits_nearly_tie(shaping):
    generator = torch.Generator().manual_seed(2)
    for spread in (1e-6, 1.0, 8.0):
        logits = 20 + spread * torch.randn(3, 61, generator=generator)
        found = truncate(logits.double().softmax(-1), shaping) > 0
        clears = []
        for support, row in zip(found, logits, strict=True):
            want, clear = reference(row, 1.0, shaping)
            clears.append(clear)
            assert clear < 1e-5 or torch.equal(support, want.isfinite())
            assert abs(int(support.sum()) - int(want.isfinite().sum())) <= (clear < 1e-5)
        assert max(clears) > 1e-5 or 0 < shaping.top_k < 61


def test_ties_are_kept_at_the_edge_of_top_k_and_counted_at_the_edge_of_top_p():
    probs = torch.tensor([[0.3, 0.2, 0.2, 0.2, 0.1]]).double()
    assert (truncate(probs, Shaping(top_k=2)) > 0).tolist() == [[True, True, True, True, False]]
    assert (truncate(probs, Shaping(top_p=0.6)) > 0).sum() == 3
    assert (truncate(probs, Shaping(top_p=1e-9)) > 0).tolist() == [[True, False, False, False, False]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model_dir(tmp_path_factory.mktemp("m") / "model", top_k=3, repetition_penalty=2.0)


@pytest.mark.parametrize("shaping", [Shaping(0.8, 6, 0.02, 1.0), Shaping(0.9, 0, 0.0, 1.5)], ids=repr)
def test_loop_and_generate_sample_the_same_tokens_from_the_same_distribution(directory, shaping):
    prompts = [Prompt(i, tuple(range(3, 4 + i % 4)), "", {}, f"t:{i}") for i in range(5)]
    policy = load_policy(str(directory), dtype="float64", temperature=1.0, device=torch.device("cpu"))
    found = []
    for decode, batch_size in (("loop", 256), ("generate", 256), ("loop", 3)):
        sampler = TransformersSampler(
            policy,
            load_tokenizer(str(directory)),
            seed=3,
            max_completion_length=10,
            min_completion_length=4,
            shaping=shaping,
            temperature=1.4,
            rollout_batch_size=batch_size,
            decode=decode,
        )
        groups = sampler.sample(prompts, 3)
        found.append([r.completion_ids.tolist() for g in groups for r in g.rollouts])
        assert (groups[0].rollouts[0].full_logps is None) == shaping.penalizes
    assert found[0] == found[1] == found[2]
    for group in groups:
        for rollout in group.rollouts:
            ids = [*group.prompt.ids, *rollout.completion_ids.tolist()]
            with torch.no_grad(), policy.computing():
                logits = policy.model(input_ids=torch.tensor([ids])).logits[0]
            for t, token in enumerate(rollout.completion_ids.tolist()):
                place = len(group.prompt.ids) + t
                banned = sampler.eos_ids if t < 4 else ()
                want, _ = reference(logits[place - 1], 1.4, shaping, ids[:place], banned)
                assert float(rollout.logps[t]) == pytest.approx(float(want[token]), abs=1e-9)
