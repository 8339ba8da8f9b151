"""Picks one token at a time by keyed noise, and records its log-prob under the distribution that it was drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.stopping_criteria import StopStringCriteria

from ..common.noise import keyed_uniform
from .shaping import FULL, Shaping, penalize, truncate

# Replaces log-probs of −∞, where a model forbids a token. Its exp is 0 in float64, so 0·log 0 is 0.
FLOOR = -1e4
# Numbers of [b, V] processed at once, so that intermediate results fit a CPU's cache, or a GPU's memory.
CHUNK = {"cpu": 2**18}
CHUNK_ELSEWHERE = 2**24
NOISE_AHEAD = 64  # positions whose noise is drawn together


class TokenPicker:
    """Picks the tokens of B completions, one position at a time, and records them.

    A completion ends with an `eos` token, or a token that completes a string which `strings` finds. `lengths` [B] is 0 until
    then. `tokens`, `logps`, `full_logps` and `entropies` are [T, B]; values after a completion's end are meaningless. `logps`
    are those of the distribution that was sampled from, `full_logps` and `entropies` those of the full tempered one.
    `full_logps` is None where the two are the same, and under a repetition penalty, where no share of one is the other.

    Args:
        prompts: [B] position of each completion's prompt in the data order; a key of the noise.
        generations: [B] number of each completion in its group; a key of the noise.
        max_length: the most tokens of a completion.
        seed: a key of the noise.
        temperature: divides the logits.
        greedy: whether to take the likeliest token.
        eos: [E] end-of-sequence tokens.
        min_length: tokens before which no `eos` token is picked.
        dtype: of log-probs and entropies.
        strings: finds stop strings.
        starts: [B] place of each completion's first token in its episode; a key of the noise (None: 0).
        rooms: [B] the most tokens of each completion (None: `max_length`).
        shaping: the truncation and the penalty.
        read: for each completion, the tokens that it continues; the penalty counts them.
    """

    def __init__(
        self,
        prompts: Tensor,
        generations: Tensor,
        max_length: int,
        *,
        seed: int,
        temperature: float,
        greedy: bool,
        eos: Tensor,
        min_length: int,
        dtype: torch.dtype,
        strings: StopStringCriteria | None = None,
        starts: Tensor | None = None,
        rooms: Tensor | None = None,
        shaping: Shaping = FULL,
        read: Sequence[Sequence[int]] = (),
    ) -> None:
        # [B] each: the noise is keyed by them, the seed and the position
        self.prompts, self.generations = prompts, generations
        self.seed, self.temperature, self.greedy = seed, temperature, greedy
        self.eos, self.min_length, self.strings = eos, min_length, strings
        shape, device = (max_length, len(prompts)), prompts.device
        self.starts = torch.zeros_like(prompts) if starts is None else starts
        self.rooms = torch.full_like(prompts, max_length) if rooms is None else rooms  # [b]
        self.all_rooms = self.rooms  # [B]
        self.tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.logps = torch.zeros(shape, dtype=dtype, device=device)
        self.entropies = torch.zeros(shape, dtype=dtype, device=device)
        self.shaping, self.read = shaping, read
        bans = min_length > 0
        differs = (bans or shaping.truncates) and not (shaping.penalizes or greedy)
        self.full_logps = torch.zeros_like(self.logps) if differs else None
        # [b, V] bool: the tokens that were read or written, where there is a penalty.
        self.seen: Tensor | None = None
        self.lengths = torch.zeros(len(prompts), dtype=torch.int64, device=device)
        self.position = 0
        self.rows: Tensor | None = None  # [b] the unfinished completions; None: all of them

    def pick(self, logits: Tensor) -> Tensor:
        """Picks the next token [b] of each remaining completion from raw logits [b, V]."""
        ahead = self.position % NOISE_AHEAD
        if ahead == 0:
            places = torch.arange(self.position, self.position + NOISE_AHEAD, device=logits.device)[:, None]
            self.noise = keyed_uniform(self.seed, self.prompts, self.generations, self.starts + places)
        if self.shaping.penalizes and self.seen is None:
            self.seen = seen_tokens(self.read, logits)
        size = max(1, CHUNK.get(logits.device.type, CHUNK_ELSEWHERE) // logits.shape[-1])
        picked = [
            self._pick(logits[i : i + size], self.noise[ahead, i : i + size], slice(i, i + size))
            for i in range(0, len(logits), size)
        ]
        tokens, logps, full, entropies = (
            picked[0] if len(picked) == 1 else map(torch.cat, zip(*picked, strict=True))
        )
        here = (self.position, slice(None) if self.rows is None else self.rows)
        self.tokens[here], self.logps[here], self.entropies[here] = tokens, logps, entropies
        if self.full_logps is not None:
            self.full_logps[here] = full
        if self.seen is not None:
            self.seen.scatter_(-1, tokens[:, None], True)
        self.position += 1
        ends = torch.isin(tokens, self.eos)
        if self.strings is not None:
            sofar = self.tokens[: self.position, here[1]].T
            found = self.strings(sofar, torch.empty(0))  # pyright: ignore[reportArgumentType] - [b] of bool
            ends |= found & (self.starts + self.position > self.min_length)
        now = self.lengths[here[1]]
        ends &= (now == 0) & (self.position <= self.rooms)
        self.lengths[here[1]] = torch.where(ends, self.position, now)
        return tokens

    @property
    def ended(self) -> Tensor:
        """[b] whether each remaining completion has ended, or has no room left."""
        ended = (self.lengths if self.rows is None else self.lengths[self.rows]) > 0
        return ended | (self.position >= self.rooms)

    def keep(self, kept: Tensor) -> None:
        """Keeps only the completions `kept` [b'] of the b remaining ones."""
        self.rows = kept if self.rows is None else self.rows[kept]
        self.prompts, self.generations = self.prompts[kept], self.generations[kept]
        self.starts, self.rooms = self.starts[kept], self.rooms[kept]
        self.noise = self.noise[:, kept]
        self.seen = None if self.seen is None else self.seen[kept]

    def _pick(self, logits: Tensor, uniform: Tensor, some: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns tokens, log-probs, log-probs under the full distribution and entropies [n] of `some` completions."""
        # A cut between nearly equal tokens is right in float64 only.
        exact = logits.double() if self.shaping.changes else logits
        scaled = exact if self.temperature == 1 else exact / self.temperature
        full = scaled.log_softmax(-1).clamp_(min=FLOOR)
        wide = full.double()
        probs = wide.exp()
        entropies = -torch.linalg.vecdot(probs, wide)
        if self.seen is not None:
            penalized = penalize(exact, self.seen[some], self.shaping.repetition_penalty)
            probs = (penalized / self.temperature).softmax(-1)
        short: Tensor | None = None  # [n] bool: the completions that may not end yet
        if self.position < self.min_length:
            short = self.starts[some] + self.position < self.min_length
            probs[:, self.eos] = probs[:, self.eos].masked_fill(short[:, None], 0.0)
        if self.shaping.truncates:
            probs = truncate(probs, self.shaping)
        tokens = probs.argmax(-1) if self.greedy else inverse_cdf(probs, uniform)
        of_full = full.gather(-1, tokens[:, None])[:, 0]
        of_sampled = of_full
        changes = self.shaping.changes
        if not self.greedy and (changes or short is not None):
            of_rest = (probs.gather(-1, tokens[:, None])[:, 0] / probs.sum(-1)).log()
            of_sampled = (
                of_rest if changes or short is None else torch.where(short, of_rest, of_full.double())
            )
        dtype = self.logps.dtype
        return tokens, of_sampled.to(dtype), of_full.to(dtype), entropies.to(dtype)


def seen_tokens(read: Sequence[Sequence[int]], logits: Tensor) -> Tensor:
    """Returns [b, V] bool: which tokens each of b sequences has. `logits` [b, V] gives the size and the device."""
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, ids in zip(seen, read, strict=True):
        row[torch.tensor(sorted({i for i in ids if i < logits.shape[-1]}), dtype=torch.int64)] = True
    return seen.to(logits.device)


class KeyedSampling(LogitsProcessor):
    """A `TokenPicker` inside `generate`. It leaves a single candidate, which greedy search then takes.

    The picker shapes the distribution itself, in vLLM's order, and sees the full one too.
    """

    def __init__(self, picker: TokenPicker) -> None:
        self.picker = picker

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Maps raw scores [B, V] to 0 for the picked token and −∞ elsewhere."""
        token = self.picker.pick(scores)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


class Ended(StoppingCriteria):
    """Tells `generate` which completions have ended."""

    def __init__(self, picker: TokenPicker) -> None:
        self.picker = picker

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns [B] bool."""
        return self.picker.ended


def inverse_cdf(probs: Tensor, uniform: Tensor) -> Tensor:
    """Returns the token [B] whose interval of the cumulative `probs` [B, V] contains `uniform` [B] in [0, 1).

    `probs` is float64 and need not sum to 1. A token of probability 0 is never picked.

    Example:
        >>> inverse_cdf(torch.tensor([[0.5, 0.0, 0.5]]).double(), torch.tensor([0.5]).double())
        tensor([2])
    """
    cdf = probs.cumsum(-1)
    total = cdf[:, -1]
    # Rounding may lift u·total to total itself, past every token. The largest number below it is in the last interval.
    point = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cdf, point[:, None], right=True)[:, 0]
    return found.clamp(max=probs.shape[-1] - 1)  # for NaN logits, which the caller finds in the log-probs
