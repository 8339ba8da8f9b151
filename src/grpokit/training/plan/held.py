"""What a rank holds besides the weights in full: the optimizer's state, and weights in 4 bits."""

from __future__ import annotations

from dataclasses import replace

from ...config.options import PlanConfig
from ...policy.eight_bit import BLOCK, SMALLEST
from .footprint import Group, Sizes, numel

# bitsandbytes' nf4 with quantized scales: half a byte a number, a 1-byte scale for 64 numbers, 4 bytes for 256 scales.
BYTES_IN_4_BITS = 1 / 2 + 1 / 64 + 4 / (64 * 256)


def optimizer_state(config: PlanConfig, trained: Sizes, ranks: int, size: int) -> tuple[str, float]:
    """Returns the name and the bytes of the optimizer's state on a rank. A user's own optimizer counts as AdamW.

    Args:
        config: the configuration, for its --optim.
        trained: the trained parameters.
        ranks: the number of ranks that share one copy of the weights.
        size: bytes of a number in the master dtype.

    Returns:
        The name and the bytes.
    """
    if config.optim == "adamw_8bit":
        large = trained.select(lambda shape, _: numel(shape) >= SMALLEST).shard(ranks)
        return "moments in 8 bits", 2 * (large * (1 + 4 / BLOCK) + (trained.shard(ranks) - large) * 4)
    both = 2 * trained.shard(ranks) * size
    if config.optim == "muon":
        return "Muon's momentum, AdamW's two moments", both - matrices(trained).shard(ranks) * size
    return "AdamW's two moments", both


def optimizer_step(config: PlanConfig, trained: Sizes, ranks: int, size: int) -> tuple[str, float]:
    """Returns the name and the bytes of the largest temporary tensors of an optimizer step.

    Args:
        config: the configuration, for its --optim.
        trained: the trained parameters.
        ranks: the number of ranks that share one copy of the weights.
        size: bytes of a number in the master dtype.

    Returns:
        The name and the bytes.
    """
    if config.optim == "adamw_8bit":
        return "", 0
    if config.optim == "muon":
        largest = max(
            (numel(shape) for layer in matrices(trained).layers for shape in layer.shapes), default=0
        )
        # The matrix, its iterate, the next one and their product; or AdamW's, if these are larger.
        roots = (trained.shard(ranks) - matrices(trained).shard(ranks)) * size
        return "a matrix that is orthogonalised", max(4 * largest * size, roots)
    return "square roots of the second moments", trained.shard(ranks) * size


def matrices(sizes: Sizes) -> Sizes:
    """Returns Muon's: the 2-D tensors of the layers."""
    return replace(sizes.select(lambda shape, _: len(shape) == 2), root=Group((), ()))


def without_4_bits(config: PlanConfig, sizes: Sizes) -> tuple[Sizes, float]:
    """Takes the weights in 4 bits out, with --load_in_4bit: the layers' frozen matrices. Every rank has all of them.

    Returns:
        The others, and the bytes of the weights in 4 bits.
    """
    if not config.load_in_4bit:
        return sizes, 0.0
    packed = sum(group.select(_is_packed).numel for group in sizes.layers)
    layers = tuple(
        group.select(lambda shape, learns: not _is_packed(shape, learns)) for group in sizes.layers
    )
    return replace(sizes, layers=layers), packed * BYTES_IN_4_BITS


def _is_packed(shape: tuple[int, ...], learns: bool) -> bool:
    return len(shape) == 2 and not learns
