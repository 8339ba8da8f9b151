"""Samples episodes of several turns: the engine continues, something else answers, and no token is encoded twice.

Episodes advance in waves. Which of them share a forward follows from the episodes alone, never from the clock: a batch of
episodes stays together, and a wave has those that go on. The answers of a wave are waited for together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..common.waiting import Waiting, together
from ..types import Episode, Messages, Prompt, Rollout, RolloutGroup
from .sampler import Request, SamplingStopped, TurnEngine

PATIENCE = 600.0  # seconds that episodes wait for room while none can begin


class OtherSide(Protocol):
    """What answers the model in one episode. An environment never sees the engine."""

    prompt_ids: tuple[int, ...]
    messages: Messages
    ending: Any
    calls: Any
    failures: int
    environment: Any

    @property
    def kind_name(self) -> str | None:
        """The class of the environment; None without one."""
        ...

    def open(self) -> Waiting[str | None]:
        """Begins the episode, and finds its prompt. Returns why it can't begin now; None: it has begun."""
        ...

    def reply(self, ids: Sequence[int], text: str, cut: bool, room: int) -> Waiting[list[int]]:
        """Answers a turn.

        Args:
            ids: the turn's tokens.
            text: what they say, without the end token.
            cut: whether the turn was cut by its length.
            room: tokens that the episode may still have.

        Returns:
            The tokens that follow; none where the episode ends.
        """
        ...

    def final_reward(self) -> Waiting[float | None]:
        """Returns the environment's own reward, where it has one."""
        ...

    def close(self) -> Waiting[None]:
        """Ends the episode, whatever has happened."""
        ...


@dataclass
class _Growing:
    """An episode that is being sampled."""

    prompt: Prompt
    generation: int
    other: OtherSide
    ids: list[int] = field(default_factory=list)  # after the prompt
    turns: list[tuple[int, int]] = field(default_factory=list)
    sampled: list[Rollout] = field(default_factory=list)

    def request(self, most: int, most_of_turn: int) -> Request:
        """Asks for the next turn."""
        room = most - len(self.ids)
        return Request(
            ids=(*self.other.prompt_ids, *self.ids),
            position=self.prompt.position,
            generation=self.generation,
            room=min(room, most_of_turn) if most_of_turn else room,
            start=len(self.ids),
        )

    def add(self, turn: Rollout) -> None:
        """Adds a sampled turn."""
        self.turns.append((len(self.ids), len(self.ids) + len(turn.completion_ids)))
        self.ids += turn.completion_ids.tolist()
        self.sampled.append(turn)

    def rollout(self, reward: float | None, decode: Callable[[list[int]], str]) -> Rollout:
        """Returns the whole episode as one completion. Only sampled tokens are trainable."""
        first, count = self.sampled[0], len(self.ids)
        logps, entropies = first.logps.new_zeros(count), first.entropies.new_full((count,), torch.nan)
        trainable = torch.zeros(count, dtype=torch.bool)
        for (begin, end), turn in zip(self.turns, self.sampled, strict=True):
            logps[begin:end], entropies[begin:end], trainable[begin:end] = turn.logps, turn.entropies, True
        other = self.other
        return Rollout(
            completion_ids=torch.tensor(self.ids, dtype=torch.int64),
            logps=logps,
            entropies=entropies,
            text=decode(self.ids) if len(self.turns) > 1 else self.sampled[-1].text,
            finish_reason="length" if other.ending == "length" else "stop",
            policy_version=first.policy_version,
            trainable=trainable,
            episode=Episode(
                prompt_ids=tuple(other.prompt_ids),
                messages=other.messages,
                turns=tuple(self.turns),
                ending=str(other.ending),
                kind=other.kind_name,
                reward=reward,
                calls=dict(other.calls),
                failures=other.failures,
                environment=other.environment,
            ),
        )


@dataclass
class EpisodeSampler:
    """A `Sampler` of episodes, on top of an engine that samples turns.

    Args:
        engine: continues tokens.
        begin: (prompt, generation) → what answers in that episode.
        decode: tokens → text.
        max_length: the most tokens of an episode after its prompt, the environment's included.
        max_turn_length: the most tokens of a turn; 0: as many as the episode has room for.
        batch_size: episodes that advance together.
        stop: asked between waves; once it is True, `sample` raises SamplingStopped.
    """

    engine: TurnEngine
    begin: Callable[[Prompt, int], OtherSide]
    decode: Callable[[list[int]], str]
    max_length: int
    max_turn_length: int = 0
    batch_size: int = 256
    stop: Callable[[], bool] = lambda: False

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`."""
        jobs = [(prompt, g) for prompt in prompts for g in range(num_generations)]
        rollouts: list[Rollout] = []
        with self.engine.session():
            for start in range(0, len(jobs), self.batch_size):
                rollouts += self._batch(jobs[start : start + self.batch_size], greedy)
        size = num_generations
        return [RolloutGroup(p, tuple(rollouts[i * size : (i + 1) * size])) for i, p in enumerate(prompts)]

    def sync(self) -> None:
        """See `Sampler.sync`."""
        self.engine.sync()

    def _batch(self, jobs: Sequence[tuple[Prompt, int]], greedy: bool) -> list[Rollout]:
        """Samples episodes that advance together. Those for which there is no room follow once others have ended."""
        found: dict[int, Rollout] = {}
        most, until, wait = len(jobs), time.monotonic() + PATIENCE, 0.1
        while left := [number for number in range(len(jobs)) if number not in found][:most]:
            sampled = self._wave([jobs[number] for number in left], greedy)
            begun = {
                n: rollout for n, rollout in zip(left, sampled, strict=True) if isinstance(rollout, Rollout)
            }
            found |= begun
            if begun:
                most, until, wait = 2 * len(begun), time.monotonic() + PATIENCE, 0.1
            elif time.monotonic() > until:
                raise TimeoutError(f"{sampled[0]}; no episode could begin for {PATIENCE:g} seconds")
            elif self.stop():
                raise SamplingStopped(f"stopped while waiting for room: {sampled[0]}")
            else:
                time.sleep(wait)
                wait = min(2 * wait, 2.0)
        return [found[number] for number in range(len(jobs))]

    def _wave(self, jobs: Sequence[tuple[Prompt, int]], greedy: bool) -> list[Rollout | str]:
        """Samples the episodes that can begin now. Returns for each its rollout, or why it can't begin."""
        episodes = [_Growing(prompt, g, self.begin(prompt, g)) for prompt, g in jobs]
        failed: BaseException | None = None
        try:
            problems = self._together([e.other.open() for e in episodes])
            going = begun = [e for e, problem in zip(episodes, problems, strict=True) if problem is None]
            while going:
                if self.stop():
                    raise SamplingStopped(f"stopped with {len(going)} of {len(episodes)} episodes under way")
                requests = [e.request(self.max_length, self.max_turn_length) for e in going]
                for episode, turn in zip(going, self.engine.complete(requests, greedy=greedy), strict=True):
                    episode.add(turn)
                answers = self._together([self._answer(e) for e in going])
                for episode, ids in zip(going, answers, strict=True):
                    episode.ids += ids
                going = [e for e in going if e.other.ending is None]
            rewards = iter(self._together([e.other.final_reward() for e in begun]))
        except BaseException as error:
            failed = error
            raise
        finally:
            try:
                together([e.other.close() for e in episodes])
            except Exception:
                if failed is None:  # else what failed first is the reason
                    raise
        return [
            e.rollout(next(rewards), self.decode) if problem is None else problem
            for e, problem in zip(episodes, problems, strict=True)
        ]

    def _answer(self, episode: _Growing) -> Waiting[list[int]]:
        turn = episode.sampled[-1]
        room = self.max_length - len(episode.ids)
        cut = turn.finish_reason == "length"
        return episode.other.reply(turn.completion_ids.tolist(), turn.text, cut, room)

    def _together(self, pieces: Sequence[Waiting[Any]]) -> list[Any]:
        try:
            return together(pieces, self.stop)
        except InterruptedError as stopped:
            raise SamplingStopped(str(stopped)) from stopped
