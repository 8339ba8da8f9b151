"""Prompts computed once for all their completions: the same numbers, from fewer tokens, or a reason said why not."""

from __future__ import annotations

import dataclasses
import re
from contextlib import contextmanager

import pytest
import torch

from grpokit.batch.advantages import add_advantages
from grpokit.batch.collate import collate
from grpokit.batch.cuts import cut_samples
from grpokit.batch.plan import plan_step
from grpokit.commands.replay import run_again
from grpokit.config.checks import check_train_config
from grpokit.policy.architecture import backbone
from grpokit.policy.learn import Learning, NonFiniteError, StepProgress, learn, optimize, score
from grpokit.policy.load import load_policy
from grpokit.runs.dumps import read_offender, write_offender
from grpokit.runs.metrics import values
from grpokit.training.setup.announce import start_notes
from grpokit.types import Prompt, Rollout, RolloutGroup, Update
from helpers.architectures import SIZES, save
from helpers.family_data import build
from helpers.running import micro_batches, start
from helpers.tiny import make_model_dir, tiny_config

CPU = torch.device("cpu")
PROMPTS = (9, 3, 6, 3)  # tokens of each prompt: two are alike
COMPLETIONS = ((7, 1, 12, 4, 4), (1, 1, 1, 1, 1), (5, 6, 2, 9, 3), (2, 17, 8, 1, 5))
FAMILIES = {
    "token": {"name": "dapo", "entropy_coef": 0.01},
    "kl": {"name": "grpo", "beta": 0.04},
    "sequence": {"name": "gspo"},
    "group": {"name": "real"},
    "step": {"name": "clip_cov", "cov_low": 0.001, "cov_high": 1e9, "cov_ratio": 0.3},
    "entropy quantile": {"name": "fipo", "top_entropy_quantile": 0.5},
    "own rank's tokens": {"name": "bnpo"},
}


def notes_of(run):
    return start_notes(run.config, run.loss, run.layout)


def load(path, dtype="float64"):
    return load_policy(str(path), dtype=dtype, temperature=0.9, device=CPU)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_model_dir(tmp_path_factory.mktemp("m") / "model", layers=2, tied=True)


def groups_of(vocabulary=16):
    """Four groups of five, of uneven lengths; some rows are dead, and some skip tokens."""
    noise = torch.Generator().manual_seed(0)
    groups = []
    for p, (prompt, lengths) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = tuple(torch.randint(3, vocabulary, (prompt,), generator=noise).tolist())
        rollouts = tuple(
            Rollout(
                completion_ids=torch.randint(3, vocabulary, (n,), generator=noise),
                logps=-2 - torch.rand(n, generator=noise),
                entropies=torch.ones(n),
                text="",
                finish_reason="stop",
                policy_version=0,
                trainable=torch.arange(n) % 4 != 2 if p == 3 else torch.ones(n, dtype=torch.bool),
            )
            for n in lengths
        )
        reward = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0] if p == 2 else [0.0, 1.0, 0.5, 0.2, 0.5]).double()
        groups.append(RolloutGroup(Prompt(p, ids, "", {}, f"t:{p}"), rollouts, reward[:, None], reward))
    return add_advantages(groups)


def rows_of(loss=None):
    return plan_step(groups_of(), loss or build("dapo"))[0].samples


def learned(path, options, **how):
    """Weights, metrics, and the gradients of both optimizer steps."""
    loss = build(**options)
    policy = load(path)
    reference = load(path) if loss.beta else None
    if reference is not None:
        with torch.no_grad():
            next(reference.parameters()).mul_(1.1)
    gradients = []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
    optimizer.register_step_pre_hook(
        lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    )
    step = StepProgress(plan_step(groups_of(), loss))
    metrics = values(
        learn(policy, reference, step, loss, optimizer, Learning(num_iterations=2, max_grad_norm=0, **how))
    )
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), metrics, gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_gradient_however_prompts_are_computed(directory, family):
    """Budgets for all groups at once, for some, for parts of a group, and for single rows."""
    weights, metrics, gradients = learned(directory, FAMILIES[family], micro_batch_tokens=10_000)
    assert all(float(g.norm()) > 1e-3 for g in gradients)
    for budget in (10_000, 90, 40, 1):
        other, theirs, theirs_too = learned(
            directory, FAMILIES[family], micro_batch_tokens=budget, share="always"
        )
        for a, b in zip(theirs_too, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(other, weights, rtol=0, atol=1e-10)
        assert theirs == pytest.approx(metrics, rel=1e-9, abs=1e-10)


ARCHITECTURES = {
    "qwen3": ("Qwen3Config", SIZES),
    "qwen2": ("Qwen2Config", SIZES),
    "llama, eager": ("LlamaConfig", SIZES | {"attn_implementation": "eager"}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 21, "initializer_range": 0.3}),
    "gemma2, window never reached": ("Gemma2Config", SIZES | {"sliding_window": 30}),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_give_the_same_with_shared_prompts(name, tmp_path):
    """Log-probs, entropies and every parameter's gradient. GPT-2 has no position beyond the longest row."""
    policy = load(save(tmp_path / "m", *ARCHITECTURES[name]))
    assert policy.shares_not is None
    loss, found = build("grpo"), []
    for form in ("padded", "shared"):
        policy.zero_grad()
        micro = collate(rows_of(loss), form, CPU)
        scores, output = policy(micro, loss, with_entropy=True)
        output.loss.backward()
        found.append((scores.logps, scores.entropies, output.loss, *[p.grad for p in policy.parameters()]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_bfloat16_within_its_rounding(directory):
    rows = rows_of()
    want = score(load(directory), rows, Learning())
    policy = load(directory, "bfloat16")
    apart = {
        share: max(
            float((found[i].double() - want[i]).abs().max())
            for found in [score(policy, rows, Learning(share=share))]
            for i in want
        )
        for share in ("never", "always")
    }
    assert apart["always"] < 1.5 * apart["never"] + 0.01


@contextmanager
def door(policy):
    """Tokens of each pass through the layers, counted at their door."""
    seen = []
    handle = (
        backbone(policy.model)
        .layers[0]
        .register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 0].numel()))
    )
    yield seen
    handle.remove()


def tokens_through(policy, micro):
    with door(policy) as seen:
        policy(micro)
    return seen


def test_prompts_go_through_the_layers_once(directory):
    policy, rows = load(directory), rows_of()
    (micro,) = micro_batches(rows, 10_000, share="always")
    assert micro.layout == "shared"
    assert tokens_through(policy, micro) == [4 * 9, 20 * 16]
    (padded,) = micro_batches(rows, 10_000)
    assert tokens_through(policy, padded) == [20 * 21]  # what it is without


def test_a_run_shares_where_it_pays(directory, tmp_path):
    """From the flag to the layers: a long prompt's tokens are seen once in an update, or once for each completion."""
    for flag, forms in {"auto": {"shared"}, "always": {"shared"}, "never": {"padded"}}.items():
        settings = {"share_prompts": flag, "output_dir": str(tmp_path / flag), "prompts_per_step": 8}
        run = start(tiny_config(tmp_path, num_generations=16, **settings))
        assert notes_of(run) == []
        cut = cut_samples(
            long_rows(), run.learning.micro_batch_tokens, packed=run.learning.packed, share=run.learning.share
        )
        assert {cut.layout} == forms
        run.close()


def long_rows(prompt=40, completion=6, groups=8, rows=16, index=0):
    row = rows_of()[0]
    return [
        dataclasses.replace(
            row,
            index=index + rows * g + i,
            group=g,
            prompt_ids=(3 + g,) * prompt,
            completion_ids=torch.full((completion,), 4),
            trainable=torch.ones(completion, dtype=torch.bool),
            sampler_logps=torch.zeros(completion),
            length=completion,
        )
        for g in range(groups)
        for i in range(rows)
    ]


def test_sharing_is_chosen_by_cost():
    def form(*sizes, **options):
        return cut_samples(long_rows(*sizes), 4096, share="auto", **options).layout

    assert form(192, 64, 4, 8) == "shared"
    assert form(512, 64, 4, 8) == "shared"
    assert form(64, 512, 4, 8) == "padded"
    assert form(8, 64, 1, 8) == "padded"
    assert form(8, 64, 1, 8, packed=True) == "packed"
    assert form(192, 64, 4, 8, packed=True) == "shared"
    assert form(192, 64, 8, 1) == "padded"  # nothing to share
    assert form(192, 64, 4, 8, ranks=32) == "padded"  # a rank has one row of each group


@pytest.mark.parametrize("budget", [1, 30, 60, 150, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 3, 16, 32])
def test_shared_cuts_lose_and_repeat_nothing(budget, ranks):
    rows = rows_of()
    cut = cut_samples(rows, budget, share="always", ranks=ranks)
    assert cut == cut_samples(list(reversed(rows)), budget, share="always", ranks=ranks)
    assert len({len(parts) for parts in cut.parts}) == 1
    indices = [row.index for parts in cut.parts for part in parts for row in part]
    assert sorted(indices) == [row.index for row in rows]
    for parts in cut.parts:
        for part in parts:
            micro = collate(part, "shared", CPU)
            inputs = micro.input_ids.numel() + micro.prefix.input_ids.numel()
            assert inputs <= budget or len(part) <= 1
            assert micro.prefix.of.max() + 1 == len(micro.prefix.input_ids)


def test_ranks_get_whole_groups_where_that_is_fair():
    even = cut_samples(long_rows(groups=8), 10_000, share="always", ranks=4)
    assert [{row.group for part in parts for row in part} for parts in even.parts] == [
        {0, 4}, {1, 5}, {2, 6}, {3, 7}
    ]  # fmt: skip
    few = cut_samples(long_rows(prompt=4, completion=60, groups=2), 10_000, share="always", ranks=4)
    assert few.imbalance < 1.01  # two groups for four ranks: each in two equal pieces
    assert [len(parts[0]) for parts in few.parts] == [8] * 4


def test_an_empty_micro_batch_goes_both_ways_and_adds_nothing(directory):
    policy = load(directory)
    empty = collate([], "shared", CPU)
    assert tokens_through(policy, empty) == [1, 1]
    for form in ("padded", "packed", "shared"):
        policy.zero_grad()
        _, output = policy(collate([], form, CPU), build("dapo"))
        output.loss.backward()
        assert float(output.loss.detach()) == 0
        assert all(p.grad is not None and not p.grad.any() for p in policy.parameters())


@pytest.mark.parametrize("count", [0, 2])
def test_the_gradient_goes_back_both_ways_whatever_is_asked_for(directory, count):
    """Ranks reduce gradients once for each pass, so none may leave one out: not even for completions of one token."""
    policy, backward = load(directory), []
    rows = [row for row in rows_of() if row.group == 1 and row.num_tokens == 4][:count]
    handle = (
        backbone(policy.model)
        .layers[0]
        .register_forward_hook(
            lambda *args: args[-1].register_hook(lambda gradient: backward.append(gradient.shape)) and None
        )
    )
    policy(collate(rows, "shared", CPU), build("dapo"))[1].loss.backward()
    handle.remove()
    assert len(rows) == count
    assert len(backward) == 2


def test_rows_of_a_group_share_only_the_prompt_that_is_theirs(directory):
    """An environment may give the members of a group different prompts: each keeps its own."""
    a, b, c = rows_of()[:3]
    rows = [a, dataclasses.replace(b, prompt_ids=(9, 9)), c]
    micro = collate(rows, "shared", CPU)
    assert micro.prefix.of.tolist() == [0, 1, 0]
    policy = load(directory)
    shared, padded = policy(micro)[0].logps, policy(collate(rows, "padded", CPU))[0].logps
    torch.testing.assert_close(shared, padded, rtol=0, atol=1e-12)
    cut = cut_samples(rows, 10_000, packed=False, share="always", ranks=1)
    assert sorted(sample.index for part in cut.parts[0] for sample in part) == [a.index, b.index, c.index]


def test_a_group_that_loses_its_prompt_is_found_out(directory):
    """Each completion on another prompt's cache: what the equality tests would look like if sharing were wrong."""
    policy, micro = load(directory), collate(rows_of(), "shared", CPU)
    right = policy(micro)[0].logps
    wrong = dataclasses.replace(micro.prefix, of=micro.prefix.of.flip(0))
    assert not torch.allclose(policy(dataclasses.replace(micro, prefix=wrong))[0].logps, right)


# --------------------------------------------------------------------------- where it can't be


REFUSED = {
    "gemma2": ("Gemma2Config", SIZES | {"sliding_window": 9}, "sliding window of 9 tokens, .* may be of 11"),
    "mamba": ("MambaConfig", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, "position ids"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_share_says_why_once(name, tmp_path):
    kind, sizes, reason = REFUSED[name]
    save(tmp_path / "model", kind, sizes)
    settings = {"max_completion_length": 6, "dtype": "float32"}
    run = start(tiny_config(tmp_path, **settings))
    run.close()
    assert run.learning.share == "never"
    (note,) = notes_of(run)
    assert re.search(f"computes its prompt again: .*{reason}", note)
    with pytest.raises(
        ValueError, match=f"--share_prompts always: cannot be used with .*{reason}.*use auto or never"
    ):
        start(tiny_config(tmp_path, share_prompts="always", output_dir=str(tmp_path / "b"), **settings))


def test_recomputed_activations_do_not_share(tmp_path):
    run = start(tiny_config(tmp_path, gradient_checkpointing=True, beta=0.1))
    run.close()
    assert run.learning.share == "never"
    assert [n for n in notes_of(run) if "--gradient_checkpointing, layers are computed again" in n]
    quiet = {"gradient_checkpointing": True, "share_prompts": "never", "output_dir": str(tmp_path / "b")}
    run = start(tiny_config(tmp_path, **quiet))
    run.close()
    assert notes_of(run) == []


@pytest.mark.parametrize("flags", [{"gradient_checkpointing": True}, {"packing": "packed"}])
def test_always_with_what_it_does_not_go_with(tmp_path, flags):
    (flag,) = flags
    with pytest.raises(ValueError, match=f"--share_prompts always: .*--{flag}.*; use auto"):
        check_train_config(tiny_config(tmp_path, share_prompts="always", **flags))


def test_a_reference_that_cannot_share_is_one_too(tmp_path):
    kind, sizes, reason = REFUSED["gemma2"]
    save(tmp_path / "reference", kind, sizes)
    run = start(tiny_config(tmp_path, beta=0.1, ref_model=str(tmp_path / "reference")))
    run.close()
    assert any(re.search(f"Gemma2ForCausalLM: .*{reason.split(',')[0]}", note) for note in notes_of(run))


def test_the_probe_finds_another_result(directory, monkeypatch):
    """A cache that is wrong in a way that nothing else would notice: keys of one prompt for all."""
    from transformers.cache_utils import DynamicLayer

    real = DynamicLayer.update

    def wrong(layer, keys, values, *args, **kwargs):
        return real(layer, keys * (1 + 0.1 * (layer.get_seq_length() > 0)), values, *args, **kwargs)

    monkeypatch.setattr(DynamicLayer, "update", wrong)
    assert "its log-probs differ with a cache" in load(directory).shares_not


def test_a_micro_batch_is_replayed_in_the_form_it_had(tmp_path, directory):
    rows, loss = rows_of(), build("dapo")
    dumped = []

    def dump(offender):
        write_offender(tmp_path / "x.safetensors", offender, tiny_config(tmp_path), 0, 0)
        dumped.append(read_offender(tmp_path / "x.safetensors"))
        return tmp_path / "x.safetensors"

    bad = tuple(dataclasses.replace(row, weight=float("nan")) for row in rows)
    policy = load(directory)
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    with pytest.raises(NonFiniteError, match=r"x\.safetensors"):
        optimize(policy, Update(bad, 1), loss, optimizer, Learning(share="always", dump=dump))
    (again,) = dumped
    assert again.layout == "shared"
    with door(policy) as seen:
        assert run_again(policy, loss, again).first == "output of loss"
    assert len(seen) == 2
