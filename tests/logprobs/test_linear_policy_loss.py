"""The one-pass head against logits that are all there at once, in float64 with plain autograd."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpokit.logprobs import Head, family_loss, linear_logprob, linear_policy_loss
from grpokit.logprobs.chunks import cut, default_chunk_tokens, joined, length
from grpokit.losses import LossBatch, StepStats, policy_loss
from grpokit.types import LossOutput
from helpers.family_data import FAMILY, build, flat, make_step

H, V = 5, 13
VARIANTS = [
    {},
    {"beta": 0.1, "entropy_coef": 0.03},
    {"correction_mode": "truncate", "beta": 0.04, "kl_gradient": "ratio"},
    {"correction_mode": "mask", "correction_level": "sequence_geometric", "opsm_threshold": 0.1},
    {"correction_mode": "truncate", "entropy_coef": 0.01, "top_entropy_quantile": 0.5},
]
HEADS = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "bias": {"bias": True, "temperature": 1.3},
    "softcap": {"softcap": 2.0, "scale": 0.5, "temperature": 0.9},
    "all": {"bias": True, "softcap": 1.5, "scale": 2.0, "temperature": 1.1},
}


@dataclasses.dataclass
class Case:
    """Inputs of the head, and a batch whose ratios are near 1."""

    hidden: torch.Tensor
    head: Head
    targets: torch.Tensor
    batch: LossBatch
    temperature: float = 1.0

    @property
    def inputs(self):
        return [x for x in (self.hidden, self.head.weight, self.head.bias) if x is not None]

    def clear(self):
        for x in self.inputs:
            x.grad = None

    def gradients(self):
        return [x.grad for x in self.inputs]


def make_case(loss, seed=1, bias=False, scale=1.0, softcap=None, temperature=1.0, dtype=torch.float64):
    batch = flat(loss, make_step(seed, rows=6, width=7))
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype).requires_grad_()

    n = len(batch)
    head = Head(leaf(V, H), leaf(V) if bias else None, scale, softcap)
    case = Case(leaf(n, H), head, torch.randint(V, (n,), generator=g), batch, temperature)
    near = full_scores(case)[0].detach()

    def beside():
        return (near + 0.3 * torch.randn(n, generator=g, dtype=torch.float64)).clamp(max=-1e-3)

    case.batch = dataclasses.replace(
        batch, old_logps=beside(), ref_logps=beside(), sampler_logps=beside(), logps=torch.zeros(n).double()
    )
    return case


def full_scores(case):
    """Log-probs and entropies by the definition, in float64."""
    logits = case.hidden.double() @ case.head.weight.double().T
    if case.head.bias is not None:
        logits = logits + case.head.bias.double()
    logits = logits * case.head.scale
    if case.head.softcap is not None:
        logits = case.head.softcap * torch.tanh(logits / case.head.softcap)
    logps = torch.log_softmax(logits / case.temperature, -1)
    return logps.gather(1, case.targets[:, None])[:, 0], -(logps.exp() * logps).sum(-1)


def oracle(case, loss, factor=1.0):
    """Loss, its gradients, log-probs, entropies and metrics, from all logits at once; and the statistics of the update."""
    case.clear()
    logps, entropies = full_scores(case)
    batch = dataclasses.replace(case.batch, logps=logps, entropies=entropies)
    stats = StepStats.of(loss, batch).finish(loss) if loss.needs_stats else None
    out = policy_loss(loss, batch, stats)
    (factor * out.loss).backward()
    return out, case.gradients(), logps.detach(), entropies.detach(), stats


def ours(case, loss, stats=None, factor=1.0, **options):
    case.clear()
    out = linear_policy_loss(
        case.hidden,
        case.head,
        case.targets,
        family_loss(loss, case.batch, stats),
        temperature=case.temperature,
        with_entropy=options.pop("with_entropy", True),
        coupling=loss.coupling,
        sequence_ids=case.batch.sequence_ids,
        **options,
    )
    (factor * out.loss).backward()
    return out


def close(got, want, tolerance=1e-12):
    assert (got is None) == (want is None)
    if want is not None:
        torch.testing.assert_close(
            got.double(),
            want.double(),
            rtol=tolerance,
            atol=tolerance * max(1.0, float(want.detach().abs().max())),
        )


def compare(case, loss, tolerance=1e-12, **options):
    want, gradients, logps, entropies, stats = oracle(case, loss, options.get("factor", 1.0))
    found = ours(case, loss, stats, **options)
    close(found.loss, want.loss, tolerance)
    close(found.logps, logps, tolerance)
    close(found.entropies, entropies, tolerance)
    for got, expected in zip(case.gradients(), gradients, strict=True):
        close(got, expected, tolerance)
    assert found.metrics.keys() == want.metrics.keys()
    for name, metric in want.metrics.items():
        expected = torch.tensor(metric.value, dtype=torch.float64)
        got = torch.tensor(found.metrics[name].value, dtype=torch.float64)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


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
def test_without_entropy(head):
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
def test_chunk_sizes(name, chunk_tokens):
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
        out = linear_policy_loss(case.hidden, case.head, case.targets, family_loss(loss, case.batch))
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
            family_loss(loss, case.batch),
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
        case.hidden, case.head, case.targets, family_loss(loss, case.batch), chunk_tokens=3
    ).loss.backward()
    close(embedding.grad, want)


def test_the_output_can_be_scaled_and_gradients_add_up():
    loss = build("dapo")
    case = make_case(loss)
    compare(case, loss, factor=3.0, chunk_tokens=4)
    once = [g.clone() for g in case.gradients()]
    linear_policy_loss(case.hidden, case.head, case.targets, family_loss(loss, case.batch)).loss.backward()
    for got, first in zip(case.gradients(), once, strict=True):
        close(got, first + first / 3)


def test_slices_add_up_to_the_whole():
    loss = build("dapo", beta=0.1)
    case = make_case(loss)
    _, gradients, *_ = oracle(case, loss)
    case.clear()
    for rows in (slice(0, 9), slice(9, len(case.targets))):
        linear_policy_loss(
            case.hidden[rows], case.head, case.targets[rows], family_loss(loss, case.batch.select(rows))
        ).loss.backward()
    for got, want in zip(case.gradients(), gradients, strict=True):
        close(got, want)


@pytest.mark.parametrize("with_entropy", [False, True])
def test_gradcheck(with_entropy):
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
        return linear_policy_loss(case.hidden, case.head, case.targets, family_loss(loss, case.batch)).loss

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
        family_loss(loss, case.batch.select(none)),
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


def test_huge_and_infinite_logits():
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


def test_float32():
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


def test_mixed_types_and_autocast():
    """Under autocast on a CPU the head stays in float32; hidden states may be narrower than the weights."""
    loss = build("dapo", beta=0.1)
    case = make_case(loss, dtype=torch.float32)
    case.hidden = case.hidden.detach().bfloat16().requires_grad_()
    _, gradients, logps, *_ = oracle(case, loss)
    case.clear()
    with torch.autocast("cpu", torch.bfloat16):
        out = linear_policy_loss(case.hidden, case.head, case.targets, family_loss(loss, case.batch))
        scored = linear_logprob(case.hidden, case.head, case.targets)[0]
    out.loss.backward()
    close(out.logps, logps, 1e-5)
    assert torch.equal(scored, out.logps)
    assert [x.grad.dtype for x in case.inputs] == [torch.bfloat16, torch.float32]
    close(case.head.weight.grad, gradients[1], 1e-5)


# --------------------------------------------------------------------------- memory


class Held(TorchDispatchMode):
    """Weak references to every storage of at least `size` bytes that an operation makes."""

    def __init__(self, size):
        super().__init__()
        self.size, self.found = size, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor) and x.untyped_storage().nbytes() >= self.size:
                self.found[x.untyped_storage().data_ptr()] = weakref.ref(x.untyped_storage())
        return out

    def peak_and_kept(self):
        gc.collect()
        return len(self.found), sum(ref() is not None for ref in self.found.values())


def wide_case(rows=40, width=3, vocabulary=4000):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=g, requires_grad=True)
    weight = torch.randn(vocabulary, width, generator=g, requires_grad=True)
    return hidden, Head(weight), torch.randint(vocabulary, (rows,), generator=g)


def total(logps, entropies, rows):
    return LossOutput(logps.sum() if entropies is None else (logps + entropies).sum(), {})


def test_no_logits_are_kept_and_only_a_chunk_is_ever_there():
    hidden, head, targets = wide_case()
    row = 4 * len(head.weight)
    with Held(4 * row) as held:  # dW is 3 rows, a chunk's logits 8
        out = linear_policy_loss(hidden, head, targets, total, chunk_tokens=8)
    assert held.peak_and_kept() == (1, 0)
    with Held(9 * row) as held:
        scored = linear_logprob(hidden, head, targets, with_entropy=True, chunk_tokens=8)
        scored[0].sum().backward()
    assert held.peak_and_kept() == (0, 0)
    assert out.loss.requires_grad


def test_the_gradient_is_handed_over_without_a_copy():
    hidden, head, targets = wide_case()
    with Held(head.weight.nbytes) as held:
        out = linear_policy_loss(hidden, head, targets, total, chunk_tokens=2)
        (2 * out.loss).backward()
    # dW alone is that large, beside the weight: a chunk's logits have two rows of its size's three.
    made = held.found.keys() - {head.weight.untyped_storage().data_ptr()}
    assert made == {head.weight.grad.untyped_storage().data_ptr()}


def test_default_chunks_fit_their_bound():
    assert default_chunk_tokens(32000, torch.float32, torch.device("cpu")) == 64 * 2**20 // 128000
    assert default_chunk_tokens(2**30, torch.float32, torch.device("cpu")) == 256
    assert default_chunk_tokens(32000, torch.float32, torch.device("cuda")) > 5000


# --------------------------------------------------------------------------- cuts, mistakes


def test_cuts():
    assert cut(0, 4) == [[slice(0, 0)]]
    assert [joined(unit) for unit in cut(10, 4)] == [slice(0, 3), slice(3, 6), slice(6, 10)]
    ids = torch.tensor([5, 5, 1, 1, 1, 7, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3])
    found = cut(len(ids), 5, ids)
    assert found == [
        [slice(0, 5)],
        [slice(5, 6)],
        [slice(6, 10), slice(10, 15)],
        [slice(15, 16)],
    ]
    assert all(length(piece) <= 5 for unit in found for piece in unit)
    mixed = torch.tensor([1, 0, 1, 0, 0])
    assert [joined(unit).tolist() for unit in cut(5, 3, mixed)] == [[1, 3, 4], [0, 2]]


def changed(case, **fields):
    head = dataclasses.replace(case.head, **{k[5:]: fields.pop(k) for k in list(fields) if k[:5] == "head_"})
    return dataclasses.replace(case, head=head, **fields)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"targets": torch.full((3,), V)}, {}, rf"targets\[0\] is {V}: outside .* 0 to {V - 1}"),
        ({"targets": torch.tensor([0, -1, 0])}, {}, r"targets\[1\] is -1"),
        ({"targets": torch.zeros(2, dtype=torch.int64)}, {}, r"shape \[2\]; expected integers, .* \[3\]"),
        ({"targets": torch.zeros(3)}, {}, r"targets: torch.float32"),
        ({"head_weight": torch.zeros(V, H + 1)}, {}, r"head.weight \[13, 6\]"),
        ({"head_bias": torch.zeros(V + 1)}, {}, r"head.bias has shape \[14\]"),
        ({"head_scale": 0.0}, {}, "scale 0.0: must be above 0"),
        ({"head_softcap": -1.0}, {}, "softcap -1.0: must be above 0"),
        ({}, {"temperature": 0.0}, "temperature 0.0: must be above 0"),
        ({}, {"chunk_tokens": 0}, "chunk_tokens 0: must be at least 1"),
        ({}, {"coupling": "batch"}, "coupling 'batch': there are token, sequence"),
        ({}, {"coupling": "sequence"}, "sequence_ids"),
        ({}, {"sequence_ids": torch.zeros(4, dtype=torch.int64)}, r"sequence_ids has shape \[4\]"),
    ],
)
def test_mistakes_are_named(changes, options, message):
    case = Case(torch.zeros(3, H), Head(torch.zeros(V, H)), torch.zeros(3, dtype=torch.int64), None)
    case = changed(case, **changes)
    with pytest.raises(ValueError, match=message):
        linear_policy_loss(case.hidden, case.head, case.targets, total, **options)
