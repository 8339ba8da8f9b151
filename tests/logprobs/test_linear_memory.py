"""The memory of the one-pass head, how it cuts, and the mistakes that it names."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from grpokit.logprobs import Head, linear_logprob, linear_policy_loss
from grpokit.logprobs.chunks import cut, default_chunk_tokens, join, length
from grpokit.types import LossOutput
from helpers.heads import Case, H, V

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


def test_cuts_lose_and_repeat_nothing():
    assert cut(0, 4) == [[slice(0, 0)]]
    assert [join(unit) for unit in cut(10, 4)] == [slice(0, 3), slice(3, 6), slice(6, 10)]
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
    assert [join(unit).tolist() for unit in cut(5, 3, mixed)] == [[1, 3, 4], [0, 2]]


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
