"""The one-pass head where nothing is learned, and in narrow types."""

from __future__ import annotations

import pytest
import torch

from grpokit.logprobs import Head, family_loss, linear_logprob, linear_policy_loss
from grpokit.types import LossOutput
from helpers.family_data import build
from helpers.heads import Case, close, compare, full_scores, make_case, oracle, ours

# --------------------------------------------------------------------------- scoring


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dapo", "gspo"])
def test_scoring_is_bitwise_the_training_pass(name, dtype):
    loss = build(name, entropy_coef=0.1)
    case = make_case(loss, seed=4, bias=True, softcap=3.0, temperature=0.9, dtype=dtype)
    options = {"temperature": 0.9, "sequence_ids": case.batch.sequence_ids, "chunk_tokens": 4}
    trained = ours(case, loss, chunk_tokens=4)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            logps, entropies = linear_logprob(
                case.hidden, case.head, case.targets, with_entropy=True, **options
            )
        assert torch.equal(logps, trained.logps)
        assert torch.equal(entropies, trained.entropies)
    assert logps.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(linear_logprob(case.hidden, case.head, case.targets, **options)[0], trained.logps)


def test_scoring_with_autograd_keeps_no_logits_and_has_the_gradient():
    case = make_case(build("dapo"), seed=4, bias=True, softcap=3.0, temperature=0.9)
    n = len(case.targets)
    a, b = torch.randn(2, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logps, entropies = full_scores(case)
    (a * logps + b * entropies).sum().backward()
    want = [g.clone() for g in case.gradients()]
    for used in ("both", "entropy"):
        case.clear()
        logps, entropies = linear_logprob(
            case.hidden, case.head, case.targets, temperature=0.9, with_entropy=True, chunk_tokens=3
        )
        if used == "both":
            (a * logps + b * entropies).sum().backward()
            for got, expected in zip(case.gradients(), want, strict=True):
                close(got, expected)
        else:
            entropies.sum().backward()
            got = case.hidden.grad.clone()
            case.clear()
            full_scores(case)[1].sum().backward()
            close(got, case.hidden.grad)


def test_huge_and_infinite_logits_give_finite_scores():
    bias = torch.tensor([0.0, -torch.inf, 1.0, 3e4]).double().requires_grad_()
    case = Case(
        torch.zeros(3, 2).double().requires_grad_(),
        Head(torch.ones(4, 2).double().requires_grad_(), bias),
        torch.tensor([3, 0, 1]),
        None,
    )
    logps, entropies = linear_logprob(case.hidden, case.head, case.targets, with_entropy=True)
    assert logps.tolist() == [0.0, -3e4, -torch.inf]
    assert entropies.tolist() == [0.0, 0.0, 0.0]
    (logps[:2].sum() + entropies.sum()).backward()
    assert all(torch.isfinite(g).all() for g in case.gradients())
    assert bias.grad.tolist() == [1.0, 0.0, 0.0, -1.0]


# --------------------------------------------------------------------------- precision


def test_float32_is_as_exact_as_its_type():
    for name in ("dapo", "gspo"):
        loss = build(name, beta=0.1, entropy_coef=0.05)
        compare(make_case(loss, seed=4, bias=True, dtype=torch.float32), loss, tolerance=2e-5, chunk_tokens=4)


def confident(dtype, rows=64, width=256, vocabulary=2000):
    """Rows whose target has a probability between 0.2 and 1 − 1e-5: it's planted along the target's weight."""
    g = torch.Generator().manual_seed(3)
    weight = torch.randn(vocabulary, width, generator=g) / width**0.5
    targets = torch.randint(vocabulary, (rows,), generator=g)
    hidden = torch.randn(rows, width, generator=g) + torch.linspace(6, 20, rows)[:, None] * weight[targets]
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_parameters_lose_nothing_in_the_head(dtype):
    hidden, weight, targets = confident(dtype)
    logps = torch.log_softmax(hidden.detach().double() @ weight.detach().double().T, -1)
    p = logps.gather(1, targets[:, None])[:, 0].exp()
    assert (p > 0.99).sum() > 10
    assert (1 - p).min() < 1e-5
    slopes = torch.linspace(-1, 1, len(p)).double() + 0.01
    d_logits = -slopes[:, None] * logps.exp()
    d_logits[torch.arange(len(p)), targets] += slopes
    out = linear_policy_loss(
        hidden,
        Head(weight),
        targets,
        lambda logps, _, rows: LossOutput((slopes[rows].float() * logps).sum(), {}),
        chunk_tokens=20,
    )
    assert (out.logps.double() - p.log()).abs().max() < 1e-5
    (1024 * out.loss).backward()  # or float16 gradients of confident tokens would be subnormal numbers
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    d_logits *= 1024
    want = d_logits @ weight.detach().double()
    error = (hidden.grad.double() - want).norm(dim=-1) / want.norm(dim=-1)
    assert error[p > 0.99].max() < 5e-3  # a bf16 gradient rounds by up to 2^-9 = 0.2 %
    want = d_logits.T @ hidden.detach().double()
    error = (weight.grad.double() - want).norm() / want.norm()
    assert error < 5e-3


def test_one_minus_p_keeps_its_precision():
    """A target with 1 − p = 1e-9 in float32: 1 − softmax would be 0, or 6e-8."""
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[20.7, 0.0], [0.0, 0.0]], requires_grad=True)
    out = linear_policy_loss(
        hidden, Head(weight), torch.tensor([0]), lambda logps, _, rows: LossOutput(logps.sum(), {})
    )
    out.loss.backward()
    want = float(torch.sigmoid(-torch.tensor(20.7).double()))
    assert out.logps.item() == pytest.approx(-want, rel=1e-5)
    assert weight.grad[:, 0].tolist() == pytest.approx([want, -want], rel=1e-5)


def test_mixed_types_and_autocast_are_computed_in_float32():
    """Under autocast on a CPU the head stays in float32; hidden states may be narrower than the weights."""
    loss = build("dapo", beta=0.1)
    case = make_case(loss, dtype=torch.float32)
    case.hidden = case.hidden.detach().bfloat16().requires_grad_()
    _, gradients, logps, *_ = oracle(case, loss)
    case.clear()
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_policy_loss(
            case.hidden, case.head, case.targets, family_loss(loss, case.batch.unscored())
        )
        scored = linear_logprob(case.hidden, case.head, case.targets)[0]
    out.loss.backward()
    close(out.logps, logps, 1e-5)
    assert torch.equal(scored, out.logps)
    assert [x.grad.dtype for x in case.inputs] == [torch.bfloat16, torch.float32]
    close(case.head.weight.grad, gradients[1], 1e-5)
