"""Statistics of a whole update, for losses that couple tokens. They are gathered over slices and ranks without gradient.

A pass over all slices makes `UpdateStats`, which add up. `finish` sorts the tokens by sequence and position, so every sum
has one order however the update was cut. Then it computes what each token's loss needs to know about the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .batch import LossBatch
from .correction import Correction, Reduce
from .loss import Loss
from .ratio import clamp_log_ratio, token_log_ratio


@dataclass(frozen=True, eq=False)
class Tokens:
    """The n gathered tokens of whole sequences, sorted by sequence and position. Floats are float64, without gradient.

    Example:
        >>> ids, x = torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 5.0]).double()
        >>> Tokens(ids, torch.tensor([0, 1, 0]), ids * 0, ids * 0, x, x, x, x, x, x).sequence_mean(x)
        tensor([2., 5.], dtype=torch.float64)
    """

    sequence_ids: Tensor
    positions: Tensor  # −1 where they are unknown
    lengths: Tensor  # T_i as the slice gave it, which may cover its own part only; 0 where it gave none
    group_ids: Tensor
    advantages: Tensor
    logps: Tensor
    log_ratio: Tensor  # clamped; relative to the surrogate's anchor
    log_weight: Tensor  # clamped old − sampler; 0 without sampler log-probs
    drift: Tensor  # clamped sampler − logps; 0 without old and sampler log-probs
    entropies: Tensor  # NaN where the batch has none
    seed: int = 0
    version: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Returns the fields that hold one value per token."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @cached_property
    def index(self) -> Tensor:
        """[n] the number of the token's sequence among those here."""
        return torch.unique_consecutive(self.sequence_ids, return_inverse=True)[1]

    @cached_property
    def _counts(self) -> Tensor:
        return torch.unique_consecutive(self.sequence_ids, return_counts=True)[1]

    @property
    def num_sequences(self) -> int:
        """The number of sequences here."""
        return len(self._counts)

    @cached_property
    def _first(self) -> Tensor:
        return self._counts.cumsum(0) - self._counts

    @cached_property
    def rank_from_end(self) -> Tensor:
        """[n] the number of trainable tokens that follow the token in its sequence."""
        last = self._counts.cumsum(0) - 1
        return last[self.index] - torch.arange(len(self.index), device=self.index.device)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sums the tokens of each sequence: [n] → [sequences]. Every sequence-level quantity uses it."""
        return values.new_zeros(self.num_sequences).index_add(0, self.index, values)

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Averages the tokens of each sequence: [n] → [sequences]."""
        return self.sequence_sum(values) / self.sequence_lengths

    def sequence_max(self, values: Tensor) -> Tensor:
        """Takes the largest value of each sequence: [n] → [sequences]."""
        lowest = values.new_full((self.num_sequences,), -torch.inf)
        return lowest.scatter_reduce(0, self.index, values, "amax")

    @property
    def reduce(self) -> Mapping[str, Reduce]:
        """How the values [n] of each sequence become one, by name: → [sequences]."""
        return {"sum": self.sequence_sum, "mean": self.sequence_mean, "max": self.sequence_max}

    @cached_property
    def sequence_lengths(self) -> Tensor:
        """[sequences] T_i, the number of gathered tokens."""
        return self._counts

    @cached_property
    def sequence_advantages(self) -> Tensor:
        """[sequences] the advantage of the sequence's first token."""
        return self.advantages[self._first]

    @cached_property
    def sequence_groups(self) -> Tensor:
        """[sequences] the group of each."""
        return self.group_ids[self._first]


@dataclass(frozen=True, eq=False)
class Stats:
    """The result of `UpdateStats.finish`: values by token and by sequence, which any slice can look up.

    Example:
        >>> from grpokit.losses import make_loss
        >>> one = torch.ones(2)
        >>> batch = LossBatch(logps=-one, advantages=one, weights=one, sequence_ids=torch.tensor([0, 0]), lengths=2 * one.long())
        >>> loss = make_loss("gspo")
        >>> UpdateStats.of(loss, batch).finish(loss).at("length", batch)
        tensor([2., 2.])
    """

    sequence_ids: Tensor  # [n], sorted
    positions: Tensor  # [n]
    by_token: Mapping[str, Tensor]  # name → [n]
    by_sequence: Mapping[str, Tensor]  # name → [n], equal for all tokens of a sequence

    def at(self, name: str, batch: LossBatch) -> Tensor:
        """Returns the values of `name` for the tokens of `batch` [N]. Raises ValueError for a token that was not gathered."""
        if name in self.by_sequence:
            keys, wanted, values = self.sequence_ids, batch.sequence_ids, self.by_sequence[name]
        else:
            keys, wanted = (
                _key(self.sequence_ids, self.positions),
                _key(batch.sequence_ids, positions_of(batch)),
            )
            values = self.by_token[name]
        place = torch.searchsorted(keys, wanted.contiguous()).clamp(max=max(0, len(keys) - 1))
        if len(wanted) and (not len(keys) or not torch.equal(keys[place], wanted)):
            raise ValueError(
                "stats: made from other tokens than this batch's; gather them over every slice of the update"
            )
        return values[place].to(batch.logps.dtype) if len(wanted) else batch.logps.detach()[:0]


@dataclass(frozen=True, eq=False)
class UpdateStats:
    """The gathered tokens of an update. `a + b` joins slices, `join` joins ranks, `finish` computes the statistics.

    Example:
        >>> from grpokit.losses import make_loss
        >>> loss, one = make_loss("gspo"), torch.ones(2)
        >>> batch = LossBatch(logps=-one, advantages=one, weights=one, sequence_ids=torch.tensor([0, 1]))
        >>> one, two = (UpdateStats.of(loss, batch.select(torch.tensor([k]))) for k in (0, 1))
        >>> stats = (one + two).finish(loss)
    """

    tokens: Tokens  # not yet sorted

    @classmethod
    def of(cls, loss: Loss, batch: LossBatch) -> UpdateStats:
        """Gathers a slice's tokens, without gradient.

        Raises:
            ValueError: the batch lacks a field that the loss couples by, such as positions, group_ids or entropies.
        """
        for name in loss.stats_fields:
            if getattr(batch, name) is None:
                raise ValueError(
                    f"{loss.name} couples tokens of a {loss.coupling}: LossBatch.{name} is missing"
                )
        b, n = batch.upcast(), len(batch)
        logps = b.logps.detach().double()
        old = logps if b.old_logps is None else b.old_logps.double()
        unknown = torch.full((n,), -1, dtype=torch.int64, device=logps.device)
        sampler = old if b.sampler_logps is None else b.sampler_logps.double()
        return cls(
            Tokens(
                sequence_ids=b.sequence_ids,
                positions=unknown if b.positions is None else b.positions,
                lengths=torch.zeros_like(unknown) if b.lengths is None else b.lengths,
                group_ids=unknown if b.group_ids is None else b.group_ids,
                advantages=b.advantages.double(),
                logps=logps,
                log_ratio=clamp_log_ratio(token_log_ratio(b, loss.surrogate.anchor)).detach().double(),
                log_weight=clamp_log_ratio(old - sampler),
                drift=clamp_log_ratio(sampler - logps),
                entropies=torch.full_like(logps, torch.nan)
                if b.entropies is None
                else b.entropies.detach().double(),
            )
        )

    def __add__(self, other: UpdateStats) -> UpdateStats:
        return self.join([self, other])

    @classmethod
    def join(cls, parts: Sequence[UpdateStats]) -> UpdateStats:
        """Joins the tokens of several slices or ranks."""
        tensors = [part.tokens.tensors() for part in parts]
        joined = {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
        return cls(dataclasses.replace(parts[0].tokens, **joined))

    def finish(self, loss: Loss, seed: int = 0, version: int = 0) -> Stats:
        """Computes thresholds, sums over sequences and groups, and selected tokens.

        Args:
            loss: the loss that couples the tokens.
            seed: the run's seed.
            version: optimizer steps taken before these weights. Together with the seed it keys random selections.

        Returns:
            The argument `stats` of `policy_loss`.

        Raises:
            ValueError: a token was gathered twice, or one is missing from a sequence.
        """
        order = _sort(self.tokens)
        in_order = {name: values[order] for name, values in self.tokens.tensors().items()}
        tokens = dataclasses.replace(self.tokens, **in_order, seed=seed, version=version)
        _check_whole(tokens, loss)
        if loss.one_advantage and not torch.equal(
            tokens.advantages, tokens.sequence_advantages[tokens.index]
        ):
            raise ValueError(
                f"{loss.name} has one value for a sequence, so it needs one advantage for all its tokens; "
                "loss_type gspo_token is the one that takes an advantage per token"
            )
        by_token, by_sequence = compute_statistics(loss, tokens)
        return Stats(tokens.sequence_ids, tokens.positions, by_token, by_sequence)


def _sort(tokens: Tokens) -> Tensor:
    by_position = tokens.positions.argsort(stable=True)
    return by_position[tokens.sequence_ids[by_position].argsort(stable=True)]


def _check_whole(tokens: Tokens, loss: Loss) -> None:
    key = _key(tokens.sequence_ids, tokens.positions)
    if (tokens.positions >= 0).all() and len(key) > 1 and bool((key[1:] == key[:-1]).any()):
        raise ValueError(
            "stats: a token was gathered twice; sequence_ids must be numbers within the whole update, and each slice "
            "must be added once"
        )
    said = torch.zeros_like(tokens.sequence_lengths).scatter_reduce(0, tokens.index, tokens.lengths, "amax")
    short = torch.nonzero(tokens.sequence_lengths < said).flatten()
    if len(short):
        k = int(short[0])
        raise ValueError(
            f"{loss.name} needs whole sequences: sequence {int(tokens.sequence_ids[tokens._first[k]])} has "
            f"{int(tokens.sequence_lengths[k])} of its {int(said[k])} tokens here; gather UpdateStats over every slice of the "
            "update and pass stats="
        )


def _key(sequence_ids: Tensor, positions: Tensor) -> Tensor:
    return sequence_ids * 2**32 + positions


def positions_of(batch: LossBatch) -> Tensor:
    """Returns the positions [N]. Raises ValueError where the batch has none."""
    if batch.positions is None:
        raise ValueError(
            "LossBatch.positions is missing: this loss looks its tokens up by sequence and position"
        )
    return batch.positions


def compute_statistics(loss: Loss, tokens: Tokens) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns (by token, by sequence): the values of each name, [n], over the sorted `tokens`."""
    by_token: dict[str, Tensor] = {}
    by_sequence: dict[str, Tensor] = {}
    part, spread = loss.surrogate, lambda values: values[tokens.index]
    if loss.level.statistic:
        before = part.before_mean
        d = before(tokens.log_ratio, tokens.advantages, **loss.options) if before else tokens.log_ratio
        reduce = tokens.sequence_mean if loss.level.statistic == "mean" else tokens.sequence_sum
        by_sequence["log_ratio"] = spread(reduce(d))
        by_sequence["length"] = spread(tokens.sequence_lengths.to(d.dtype))
    if loss.correction is not None:
        by_sequence |= _of_correction(loss, loss.correction, tokens)
    if loss.opsm_threshold is not None:
        by_sequence["drift"] = spread(tokens.sequence_mean(tokens.drift))
    if loss.top_entropy_quantile is not None:
        entropies = without_noise(tokens.entropies)
        by_token["high_entropy"] = (entropies >= _top(entropies, loss.top_entropy_quantile)).double()
    if loss.spreads_factor:
        factor = torch.ones_like(tokens.logps)
        if loss.token_correction is not None:
            factor = factor * loss.token_correction.weight(loss.token_correction.of_tokens(tokens.log_weight))
            factor = factor / by_sequence.get("mean_weight", 1.0)
        by_sequence["mean_factor"] = spread(tokens.sequence_mean(factor * by_token.get("high_entropy", 1.0)))
    if part.statistics is not None and len(tokens.logps):
        by_token |= part.statistics(tokens, **loss.options)
    elif part.statistics is not None:
        by_token |= dict.fromkeys(part.inputs, tokens.logps)
    return by_token, by_sequence


def _of_correction(loss: Loss, correction: Correction, tokens: Tokens) -> dict[str, Tensor]:
    """Returns the correction's values of whole sequences, and of the update, each [n]."""
    found: dict[str, Tensor] = {}
    value = correction.of_sequence(tokens.log_weight, tokens.reduce)
    by_token = correction.level == "token"
    if not by_token:
        found["correction"] = value[tokens.index]
    if correction.keep is not None:
        found["sequence_kept"] = correction.keeps(tokens.log_weight, tokens.reduce)[tokens.index].double()
    if correction.normalize:  # over tokens for weights of tokens, over sequences for weights of sequences
        mean = correction.weight(value).mean() if len(value) else tokens.logps.new_ones(())
        found["mean_weight"] = torch.where(mean > 1e-8, mean, 1.0).expand(len(tokens.logps))
    if loss.surrogate.correction_inside:
        of_tokens = correction.log_weight(value)
        found["inside"] = (tokens.sequence_sum(of_tokens) if by_token else of_tokens)[tokens.index]
    return found


def without_noise(values: Tensor) -> Tensor:
    """Rounds float64 values to float32's seven digits, before choosing among tokens.

    The first tokens of a group's completions often have equal prefixes, so their values are equal except for rounding. The
    rounding depends on the batch they were computed in. Without this, the choice would depend on the cut and the ranks.
    """
    return values.float()


def _top(entropies: Tensor, quantile: float) -> Tensor:
    """Returns the entropy that the top `quantile` of the tokens reach, interpolated linearly like torch.quantile."""
    if not len(entropies):
        return entropies.new_zeros(())
    ordered = entropies.sort().values
    place = (1 - quantile) * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low)
