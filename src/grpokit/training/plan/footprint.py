"""Measures a model's parameters and activations from its shapes alone. Its weights are on torch's meta device, not loaded."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...policy.architecture import backbone, layers
from ...policy.load import remove_dropout
from ...policy.policy import Policy

# Activations of a layer in bytes per token and hidden unit, in 16 bit and without the attention matrix: equation 2 of
# https://arxiv.org/abs/2205.05198. Used only where the forward cannot run on shapes.
BYTES_PER_HIDDEN = 34


@dataclass(frozen=True)
class Group:
    """Parameters that are gathered together: a layer's, or the root's (embedding, final norm, head)."""

    shapes: tuple[tuple[int, ...], ...]
    learns: tuple[bool, ...]  # whether each is trained

    @property
    def trained(self) -> Group:
        """The trained ones."""
        return self.select(lambda _, learns: learns)

    def select(self, wanted: Callable[[tuple[int, ...], bool], bool]) -> Group:
        """Returns those for whose shape, and whether they are trained, `wanted` holds."""
        chosen = [one for one in zip(self.shapes, self.learns, strict=True) if wanted(*one)]
        return Group(tuple(shape for shape, _ in chosen), tuple(learns for _, learns in chosen))

    @property
    def numel(self) -> int:
        """The number of parameters."""
        return sum(numel(shape) for shape in self.shapes)

    def shard(self, ranks: int) -> int:
        """Returns the parameters of one rank's shard. The rows of each are divided evenly, and padded if necessary."""
        return sum(-(-shape[0] // ranks) * numel(shape[1:]) if shape else 1 for shape in self.shapes)


@dataclass(frozen=True)
class Sizes:
    """A model's parameters, in the groups in which they are sharded."""

    root: Group
    layers: tuple[Group, ...]
    vocabulary: int
    hidden: int

    @property
    def trained(self) -> Sizes:
        """The trained parameters: all of them, or an adapter's."""
        return self.select(lambda _, learns: learns)

    def select(self, wanted: Callable[[tuple[int, ...], bool], bool]) -> Sizes:
        """Returns those for whose shape, and whether they are trained, `wanted` holds."""
        return replace(
            self, root=self.root.select(wanted), layers=tuple(layer.select(wanted) for layer in self.layers)
        )

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups."""
        return (self.root, *self.layers)

    @property
    def numel(self) -> int:
        """The number of parameters of the whole model."""
        return sum(group.numel for group in self.groups)

    @property
    def largest_layer(self) -> int:
        """The number of parameters of the largest layer."""
        return max((group.numel for group in self.layers), default=0)

    def shard(self, ranks: int) -> int:
        """Returns the parameters that one of `ranks` ranks stores, padding included."""
        return sum(group.shard(ranks) for group in self.groups)


@dataclass(frozen=True)
class Types:
    """The run's dtypes: `compute` (forward passes), `master` (trained weights, optimizer state), `saved` (checkpoints), and
    `frozen` (weights beside an adapter are in the compute dtype, other frozen ones in the master dtype).
    """

    compute: torch.dtype
    master: torch.dtype
    saved: torch.dtype
    frozen: torch.dtype

    def bytes(self, part: Group | Sizes, ranks: int = 1) -> int:
        """Returns the bytes that one of `ranks` ranks stores of some parameters."""
        trained = part.trained.shard(ranks)
        return (part.shard(ranks) - trained) * self.frozen.itemsize + trained * self.master.itemsize


@dataclass(frozen=True)
class Activations:
    """The bytes that the forward of one micro-batch keeps for its backward."""

    rows: int
    length: int  # tokens of each sample
    layers: tuple[int, ...]
    inputs: int  # bytes of the layers' inputs, all that gradient checkpointing keeps
    root: int  # outside the layers
    cache: float  # the key-value cache of one token
    failure: str = ""  # why it comes from a formula instead of a measurement

    def kept(self, recomputed: bool) -> int:
        """Returns the bytes at the end of the forward or, if layers are recomputed, after the largest one was."""
        inside = self.inputs + max(self.layers, default=0) if recomputed else sum(self.layers)
        return self.root + inside

    def scaled(self, rows: int, length: int) -> Activations:
        """Estimates a micro-batch of another shape: the same for each token."""
        factor = rows * length / (self.rows * self.length)
        return replace(
            self,
            rows=rows,
            length=length,
            layers=tuple(int(kept * factor) for kept in self.layers),
            inputs=int(self.inputs * factor),
            root=int(self.root * factor),
        )


def sizes_of(model: Any) -> Sizes:
    """Returns a model's parameters in the groups that `parallel.shard` makes. Tied weights count once."""
    taken: set[int] = set()

    def group(module: nn.Module) -> Group:
        new = [p for p in module.parameters() if id(p) not in taken]
        taken.update(id(p) for p in new)
        return Group(tuple(tuple(p.shape) for p in new), tuple(p.requires_grad for p in new))

    parts = tuple(group(layer) for layer in layers(model))
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    return Sizes(group(model), parts, vocabulary, hidden)


def activations_of(
    model: Any, rows: int, length: int, compute: torch.dtype, master: torch.dtype
) -> Activations:
    """Runs the model's own forward on tensors that have shapes and dtypes but no memory, and counts what autograd saves.

    It counts storages, without parameters. Layers are in the dtype `compute`, in which they are gathered. Where they are not
    gathered, autocast makes copies in that dtype, which the plan adds. Some architectures cannot run on shapes (experts are
    routed by values, for example). For those it uses a formula.

    Args:
        model: the model on the meta device.
        rows: samples of the micro-batch.
        length: tokens of each.
        compute: the dtype of the layers.
        master: the dtype of the trained parameters.

    Returns:
        The activations.
    """
    model = copy.deepcopy(model)
    remove_dropout(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(master if parameter.requires_grad else compute)
    for layer in layers(model):
        layer.to(compute)
    policy = Policy(model, 1.0, compute, compute)
    try:
        # fake tensors on a CPU instead of meta ones: autocast and the choice of attention act as on a device
        with _silent(), FakeTensorMode(allow_non_fake_inputs=True), CausalAttention():
            model.to_empty(device="cpu")
            found = _saved(policy, torch.zeros(rows, length, dtype=torch.int64))
            return Activations(rows, length, *found, cache=_cache(policy))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return _from_formula(model, rows, length, compute, str(error).strip().splitlines()[0])


class CausalAttention(TorchFunctionMode):
    """Drops the attention mask, as for right-padded samples. On shapes alone, transformers would materialise one."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            kwargs |= {"attn_mask": None, "is_causal": True}
        return func(*args, **kwargs)


class Ledger:
    """Counts the bytes that autograd saves. Each storage counts once, for the layer that saves it first (−1: outside)."""

    def __init__(self, model: nn.Module) -> None:
        self.inside = -1
        self.kept: dict[
            int, tuple[int, Any]
        ] = {}  # storage → (layer, storage): held, so that no address comes again
        self.parameters = {p.untyped_storage()._cdata for p in model.parameters()}
        self.inputs = 0

    def note(self, tensor: Tensor) -> Tensor:
        """Is called with each tensor that is saved."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.parameters:
            self.kept.setdefault(storage._cdata, (self.inside, storage))
        return tensor

    def bytes_of(self, layer: int) -> int:
        """Returns the bytes that `layer` saved."""
        return sum(storage.nbytes() for where, storage in self.kept.values() if where == layer)

    @contextlib.contextmanager
    def watching(self, parts: Sequence[nn.Module]) -> Iterator[None]:
        """Notes what is saved inside the block, and which of `parts` is running."""

        def enter(number: int) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: Sequence[Any]) -> None:
                self.inside = number
                self.inputs += sum(x.nbytes for x in inputs[:1] if isinstance(x, Tensor))

            return hook

        def leave(*_: Any) -> None:
            self.inside = -1

        hooks = [part.register_forward_pre_hook(enter(number)) for number, part in enumerate(parts)]
        hooks += [part.register_forward_hook(leave) for part in parts]
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.note, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _saved(policy: Policy, input_ids: Tensor) -> tuple[tuple[int, ...], int, int]:
    parts = layers(policy.model)
    ledger = Ledger(policy)
    with policy.computing(), ledger.watching(parts):
        backbone(policy.model)(input_ids=input_ids, use_cache=False)
    return tuple(ledger.bytes_of(n) for n in range(len(parts))), ledger.inputs, ledger.bytes_of(-1)


@torch.no_grad()
def _cache(policy: Policy, length: int = 16) -> float:
    with policy.computing():
        output = backbone(policy.model)(input_ids=torch.zeros(1, length, dtype=torch.int64), use_cache=True)
    parts = (
        output.past_key_values.layers
    )  # a recurrent layer has a state instead, which does not grow with the tokens
    tensors = [getattr(part, name, None) for part in parts for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor)) / length


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Silences torch, which logs a traceback for each failure on shapes. The plan reports it in one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _from_formula(model: Any, rows: int, length: int, compute: torch.dtype, failure: str) -> Activations:
    config, count, tokens = model.config.get_text_config(), len(layers(model)), rows * length
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = BYTES_PER_HIDDEN * config.hidden_size * tokens * compute.itemsize // 2
    return Activations(
        rows,
        length,
        layers=(kept,) * count,
        inputs=count * tokens * config.hidden_size * 4,
        root=tokens * config.hidden_size * 4,
        cache=2.0
        * count
        * (getattr(config, "num_key_value_heads", None) or heads)
        * width
        * compute.itemsize,
        failure=failure,
    )


def numel(shape: Sequence[int]) -> int:
    """Returns the number of elements of a tensor of this shape."""
    return torch.Size(shape).numel()
