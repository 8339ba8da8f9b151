"""The Triton kernels against their torch twins: here by Triton's interpreter on a CPU, on a GPU where there is one.

The interpreter runs one program after another, so it can't see a race; and it truncates float32 to bf16 where a GPU
rounds (2^-8 is allowed). TRITON_INTERPRET counts when Triton is imported, so the kernels run in a process of their own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from grpokit.logprobs import Head, linear_policy_loss
from grpokit.logprobs import kernels as rows
from grpokit.logprobs.head import Squash
from grpokit.types import LossOutput
from helpers.places import ROOT

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAN_RUN = INTERPRETED or DEVICE == "cuda"
kernels = pytest.mark.skipif(not CAN_RUN, reason="kernels run on a GPU, or in the interpreter's process")


@pytest.mark.skipif(CAN_RUN, reason="they run in this process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", __file__]
    # A warning of the interpreter's own (numpy's overflow in exp(−inf) and the like) is no finding.
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""}
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST_XDIST")}
    found = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "passed" in found.stdout


def make_rows(n=7, vocabulary=37, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, vocabulary, generator=g)
    targets = torch.randint(vocabulary, (n,), generator=g)
    logits[0, targets[0]] = 25.0  # 1 − p of 1e-8 and less
    logits[1, 3] = -torch.inf
    return logits.to(DEVICE), targets.to(DEVICE)


SQUASHES = {"plain": Squash(1.0), "gain": Squash(1.7), "softcap": Squash(6.0, 0.2)}


@kernels
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("squash", SQUASHES.values(), ids=list(SQUASHES))
@pytest.mark.parametrize("vocabulary", [8, 37, 128])
def test_rows_are_those_of_torch(vocabulary, squash, with_entropy, monkeypatch):
    """Vocabularies of one block, of several with a rest, and of whole blocks."""
    from grpokit.logprobs import triton_kernels as triton_rows

    monkeypatch.setattr(triton_rows, "BLOCK", 16)
    logits, targets = make_rows(vocabulary=vocabulary)
    exact, same = logits.double(), logits.clone()
    want = rows.row_statistics(exact, targets, squash, with_entropy)
    got = triton_rows.row_statistics(same, targets, squash, with_entropy)
    assert torch.equal(same, logits)
    for name in ("shift", "target", "others", "logps", "moment", "entropies"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a.double(), b, rtol=3e-6, atol=3e-6)
    g = torch.Generator().manual_seed(1)
    slopes = torch.randn(2, len(targets), generator=g).to(DEVICE)
    d_entropies = slopes[1] if with_entropy else None
    more = None if d_entropies is None else d_entropies.double()
    d_want = rows.gradient_(exact, targets, want, squash, slopes[0].double(), more, torch.float64)
    d_got = triton_rows.gradient_(same, targets, got, squash, slopes[0], d_entropies, torch.float32)
    assert d_got.data_ptr() == same.data_ptr()
    torch.testing.assert_close(d_got.double(), d_want, rtol=2e-5, atol=1e-6)
    if squash.slope is None:  # a softcap's slope, 1 − tanh², has what float32 leaves of it
        confident = (0, targets[0])
        torch.testing.assert_close(d_got[confident].double(), d_want[confident], rtol=1e-4, atol=0)


@kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_gradient_lies_over_its_own_rows(dtype, monkeypatch):
    from grpokit.logprobs import triton_kernels as triton_rows

    monkeypatch.setattr(triton_rows, "BLOCK", 16)
    logits, targets = make_rows(vocabulary=100)
    c = torch.linspace(-1, 1, len(targets), device=DEVICE)
    found = []
    for module in (rows, triton_rows):
        x = logits.clone()
        stats = module.row_statistics(x, targets, Squash(1.0), False)
        d = module.gradient_(x, targets, stats, Squash(1.0), c, None, dtype)
        assert d.dtype == dtype
        assert d.data_ptr() == x.data_ptr()
        assert d.stride(0) * d.element_size() == x.stride(0) * x.element_size()
        found.append(d.double())
    torch.testing.assert_close(*found, rtol=2**-7 if dtype == torch.bfloat16 else 2**-10, atol=1e-6)


@kernels
@pytest.mark.parametrize("head", [{}, {"bias": True, "softcap": 3.0, "scale": 0.5}])
def test_the_loss_through_the_kernels(head, monkeypatch):
    from grpokit.logprobs import head_pass as passes
    from grpokit.logprobs import triton_kernels as triton_rows

    g = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=g).to(DEVICE) for s in ((9, 6), (50, 6), (50,)))
    targets = torch.randint(50, (9,), generator=g).to(DEVICE)
    given = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    head = Head(weight, bias if head else None, head.get("scale", 1.0), head.get("softcap"))

    def loss_fn(logps, entropies, rows):
        return LossOutput((logps.sin() + 0.3 * entropies).sum(), {})

    found = []
    for module in (triton_rows, rows):
        monkeypatch.setattr(passes, "_row_kernels", lambda device, wide, module=module: module)
        out = linear_policy_loss(
            hidden, head, targets, loss_fn, temperature=0.8, with_entropy=True, chunk_tokens=4
        )
        found.append([out.loss.detach(), out.logps, out.entropies])
        found[-1] += [g for g in torch.autograd.grad(out.loss, given, allow_unused=True) if g is not None]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    none = slice(0, 0)
    out = linear_policy_loss(hidden[none], head, targets[none], loss_fn, with_entropy=True)
    assert out.loss.item() == 0


@kernels
def test_float32_takes_the_kernels_and_float64_does_not():
    from grpokit.logprobs import head_pass as passes
    from grpokit.logprobs import triton_kernels as triton_rows

    device = torch.device(DEVICE)
    assert passes._row_kernels(device, torch.float32) is triton_rows
    assert passes._row_kernels(device, torch.float64) is rows


def test_without_triton_torch_serves_and_says_so(monkeypatch, caplog):
    from grpokit.logprobs import head_pass as passes

    passes._triton_or_torch.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "grpokit.logprobs.triton_kernels", raising=False)
    import grpokit.logprobs

    monkeypatch.delattr(grpokit.logprobs, "triton_kernels", raising=False)
    assert passes._row_kernels(torch.device("cuda"), torch.float32) is rows
    assert passes._row_kernels(torch.device("cuda"), torch.float32) is rows
    assert caplog.text.count("without Triton") == 1
    passes._triton_or_torch.cache_clear()


@pytest.mark.skipif(
    DEVICE != "cuda", reason="needs a GPU: matmuls of bf16 with a float32 result are cuBLAS's"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_matmuls_on_a_gpu(dtype):
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*s, generator=g).to(DEVICE, dtype) for s in ((300, 256), (5000, 256)))
    hidden, weight = hidden.requires_grad_(), (weight / 16).detach().requires_grad_()
    targets = torch.randint(5000, (300,), generator=g).to(DEVICE)
    out = linear_policy_loss(
        hidden, Head(weight), targets, lambda x, _, rows: LossOutput(x.sum(), {}), chunk_tokens=128
    )
    out.loss.backward()
    got = [hidden.grad, weight.grad]
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    want = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    want.sum().backward()
    assert (out.logps - want).abs().max() < 1e-5
    for a, b in zip(got, (hidden.grad, weight.grad), strict=True):
        assert (a.double() - b).norm() / b.norm() < 5e-3
