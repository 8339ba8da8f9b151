"""The one-pass head against logits that are all there at once, in float64 with plain autograd."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpokit.logprobs import family_loss, linear_logprob, linear_policy_loss
from grpokit.logprobs.chunks import length
from grpokit.losses import policy_loss
from grpokit.types import LossOutput
from helpers.family_data import FAMILY, build
from helpers.heads import HEADS, VARIANTS, H, V, close, compare, full_scores, make_case, oracle, ours

# --------------------------------------------------------------------------- exact: the family, heads, chunks


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v) or "alone")
@pytest.mark.parametrize("name", FAMILY)
def test_every_loss_has_the_gradient_of_the_full_logits(name, variant):
    """Sequences of up to 7 tokens, so chunks of 3 cut most of them and chunks of 8 hold one or two."""
    loss = build(name, **variant)
    case = make_case(loss, seed=len(name))
    for chunk_tokens in (3, 8):
        compare(case, loss, chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("name", ["dapo", "gspo", "kl_cov"])
@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_temperature_bias_softcap_and_scale(name, head):
    loss = build(name, beta=0.1, entropy_coef=0.05)
    compare(make_case(loss, seed=4, **head), loss, chunk_tokens=4)


@pytest.mark.parametrize("head", HEADS.values(), ids=list(HEADS))
def test_without_entropy_the_loss_is_the_same(head):
    loss = build("dapo", beta=0.1)
    case = make_case(loss, seed=4, **head)
    want, gradients, *_ = oracle(case, loss)
    found = ours(case, loss, with_entropy=False, chunk_tokens=4)
    close(found.loss, want.loss)
    assert found.entropies is None
    for got, expected in zip(case.gradients(), gradients, strict=True):
        close(got, expected)


@pytest.mark.parametrize("name", ["grpo", "gspo", "real"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, "N", "N+5", None])
def test_any_chunk_size_gives_the_same(name, chunk_tokens):
    loss = build(name, entropy_coef=0.02)
    case = make_case(loss, seed=2)
    n = len(case.targets)
    compare(case, loss, chunk_tokens={"N": n, "N+5": n + 5}.get(chunk_tokens, chunk_tokens))


@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_a_sequence_whose_tokens_are_no_neighbours(name):
    loss = build(name, beta=0.1)
    case = make_case(loss, seed=2)
    order = torch.randperm(len(case.targets), generator=torch.Generator().manual_seed(0))
    case = dataclasses.replace(
        case,
        hidden=case.hidden.detach()[order].requires_grad_(),
        targets=case.targets[order],
        batch=case.batch.select(order),
    )
    for chunk_tokens in (2, 9):
        compare(case, loss, chunk_tokens=chunk_tokens)


def test_a_coupled_loss_meets_whole_sequences_once(monkeypatch):
    """A fourth matmul only for sequences that are longer than a chunk, and not for their last piece."""
    from grpokit.logprobs.projection import Projection

    loss = build("gspo")
    case = make_case(loss, seed=2)
    lengths = case.batch.sequence_ids.unique(return_counts=True)[1].tolist()
    rows = []
    plain = Projection.logits
    monkeypatch.setattr(Projection, "logits", lambda self, r: rows.append(length(r)) or plain(self, r))
    ours(case, loss, chunk_tokens=max(lengths))
    assert sum(rows) == sum(lengths)
    rows.clear()
    ours(case, loss, chunk_tokens=3)
    pieces = [[(n + k) // -(-n // 3) for k in range(-(-n // 3))] for n in lengths]
    assert sum(rows) == sum(lengths) + sum(sum(p[:-1]) for p in pieces if len(p) > 1)


# --------------------------------------------------------------------------- what needs a gradient


def counted(monkeypatch):
    """Names of the matmuls as they run."""
    calls = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                calls.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    return Count(), calls


@pytest.mark.parametrize(
    ("frozen", "matmuls"), [((), 3), (("weight",), 2), (("hidden",), 2), (("weight", "hidden"), 1)]
)
def test_what_is_frozen_costs_no_matmul(frozen, matmuls, monkeypatch):
    loss = build("dapo")
    case = make_case(loss)
    _, gradients, *_ = oracle(case, loss)
    for name in frozen:
        (case.hidden if name == "hidden" else case.head.weight).requires_grad_(False)
    case.clear()
    mode, calls = counted(monkeypatch)
    with mode:
        out = linear_policy_loss(
            case.hidden, case.head, case.targets, family_loss(loss, case.batch.unscored())
        )
    assert len(calls) == matmuls
    assert out.loss.requires_grad == (len(frozen) < 2)
    if out.loss.requires_grad:
        out.loss.backward()
    for name, x, want in zip(("hidden", "weight"), case.inputs, gradients, strict=True):
        close(x.grad, None if name in frozen else want)


def test_without_grad_mode_there_is_one_matmul_and_no_graph(monkeypatch):
    loss = build("gspo", entropy_coef=0.1)
    case = make_case(loss)
    want = oracle(case, loss)[0].loss
    mode, calls = counted(monkeypatch)
    with torch.no_grad(), mode:
        out = linear_policy_loss(
            case.hidden,
            case.head,
            case.targets,
            family_loss(loss, case.batch.unscored()),
            with_entropy=True,
            coupling="sequence",
            sequence_ids=case.batch.sequence_ids,
        )
    assert len(calls) == 1
    assert not out.loss.requires_grad
    close(out.loss, want)


def test_tied_weights_that_are_used_elsewhere_too():
    loss = build("dapo", beta=0.1)
    case = make_case(loss)
    n = len(case.targets)
    embedding = case.head.weight
    mix = torch.randn(n, V, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    case.hidden = mix @ embedding  # hidden states are made of the same weight
    logps, entropies = full_scores(case)
    policy_loss(loss, dataclasses.replace(case.batch, logps=logps, entropies=entropies)).loss.backward()
    want, embedding.grad = embedding.grad, None
    case.hidden = mix @ embedding
    linear_policy_loss(
        case.hidden, case.head, case.targets, family_loss(loss, case.batch.unscored()), chunk_tokens=3
    ).loss.backward()
    close(embedding.grad, want)


def test_the_output_can_be_scaled_and_gradients_add_up():
    loss = build("dapo")
    case = make_case(loss)
    compare(case, loss, factor=3.0, chunk_tokens=4)
    once = [g.clone() for g in case.gradients()]
    linear_policy_loss(
        case.hidden, case.head, case.targets, family_loss(loss, case.batch.unscored())
    ).loss.backward()
    for got, first in zip(case.gradients(), once, strict=True):
        close(got, first + first / 3)


def test_slices_add_up_to_the_whole():
    loss = build("dapo", beta=0.1)
    case = make_case(loss)
    _, gradients, *_ = oracle(case, loss)
    case.clear()
    for rows in (slice(0, 9), slice(9, len(case.targets))):
        linear_policy_loss(
            case.hidden[rows],
            case.head,
            case.targets[rows],
            family_loss(loss, case.batch.select(rows).unscored()),
        ).loss.backward()
    for got, want in zip(case.gradients(), gradients, strict=True):
        close(got, want)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_gradient_passes_gradcheck(with_entropy):
    case = make_case(build("dapo"), seed=7, bias=True, softcap=2.0, temperature=0.8)
    n = 4

    def loss_fn(logps, entropies, rows):
        value = (logps.sin() * torch.arange(1, n + 1)[rows]).sum()
        return LossOutput(value if entropies is None else value + entropies.square().sum(), {})

    def f(hidden, weight, bias):
        return linear_policy_loss(
            hidden,
            dataclasses.replace(case.head, weight=weight, bias=bias),
            case.targets[:n],
            loss_fn,
            temperature=0.8,
            with_entropy=with_entropy,
            chunk_tokens=3,
        ).loss

    assert torch.autograd.gradcheck(f, (case.hidden.detach()[:n].requires_grad_(), *case.inputs[1:]))


def test_a_kept_graph_gives_the_same_again_and_a_spent_one_says_so():
    loss = build("dapo")
    case = make_case(loss)

    def fresh():
        return linear_policy_loss(
            case.hidden, case.head, case.targets, family_loss(loss, case.batch.unscored())
        ).loss

    value = fresh()
    (3 * value).backward(retain_graph=True)
    want = [3 * g.clone() / 3 for g in case.gradients()]
    case.clear()
    (3 * value).backward()
    for got, expected in zip(case.gradients(), want, strict=True):
        close(got, expected)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        value.backward()
    with pytest.raises(RuntimeError, match="gradient of its gradient"):
        torch.autograd.grad(fresh(), case.inputs, create_graph=True)
    logps, _ = linear_logprob(case.hidden, case.head, case.targets)
    with pytest.raises(RuntimeError, match="gradient of its gradient"):
        torch.autograd.grad(logps.sum(), case.inputs, create_graph=True)


def test_no_tokens_give_a_connected_zero():
    loss = build("gspo", entropy_coef=0.1, beta=0.1)
    case = make_case(loss)
    none = slice(0, 0)
    hidden = case.hidden.detach()[none].requires_grad_()
    out = linear_policy_loss(
        hidden,
        case.head,
        case.targets[none],
        family_loss(loss, case.batch.select(none).unscored()),
        with_entropy=True,
        coupling="sequence",
        sequence_ids=case.batch.sequence_ids[none],
    )
    assert out.loss.item() == 0
    assert set(out.metrics) == set(oracle(case, loss)[0].metrics)
    case.clear()
    out.loss.backward()
    assert hidden.grad.shape == (0, H)
    assert torch.equal(case.head.weight.grad, torch.zeros(V, H).double())
    assert [len(x) for x in linear_logprob(hidden, case.head, case.targets[none], with_entropy=True)] == [
        0,
        0,
    ]


def test_a_loss_that_says_nothing_of_the_logps():
    case = make_case(build("dapo"))
    linear_policy_loss(
        case.hidden, case.head, case.targets, lambda logps, entropies, rows: LossOutput(torch.zeros(()), {})
    ).loss.backward()
    assert not case.hidden.grad.any()
    assert not case.head.weight.grad.any()
