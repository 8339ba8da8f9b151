"""Samples episodes of several turns: an engine samples each turn, an `OtherSide` answers it, and nothing is tokenized twice.

Each episode is a piece of work that waits for its turns and for the answers to them. The transformers engine samples the
turns of all episodes together, in waves: see `waves.py`. With vLLM, each episode advances without waiting for the others.

Where an environment has no room for all episodes (`NoRoom`), which of them go on together depends on when it has room.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..common.waiting import Waiting
from ..parallel import ALONE, World
from ..types import Episode, EpisodeFailed, NoRoom, Prompt, Rollout, RolloutGroup
from ..types.episode import rewards_of_turns
from .dropped import ErrorBudget
from .other_side import PATIENCE, OtherSide, close_all
from .pending import Progress, RolloutsPending, sample_together
from .sampler import Request, SamplingStopped, TurnEngine, Turns

log = logging.getLogger(__name__)


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
            source=self.prompt.source,
        )

    def add(self, turn: Rollout) -> None:
        """Adds a sampled turn."""
        self.turns.append((len(self.ids), len(self.ids) + len(turn.completion_ids)))
        self.ids += turn.completion_ids.tolist()
        self.sampled.append(turn)

    def rollout(
        self, reward: float | None, decode: Callable[[list[int]], str], version: int, error: str | None
    ) -> Rollout:
        """Returns the whole episode as one completion. Only sampled tokens are trainable; none of a dropped episode's.

        Args:
            reward: the environment's own reward.
            decode: tokens → text.
            version: optimizer steps taken before the weights that sampled it.
            error: why it is dropped, or None.
        """
        count = len(self.ids)
        like = self.sampled[0].logps if self.sampled else torch.zeros(0)
        logps, entropies = like.new_zeros(count), like.new_full((count,), torch.nan)
        trainable = torch.zeros(count, dtype=torch.bool)
        knows_full = bool(self.sampled) and self.sampled[0].full_logps is not None
        full = like.new_full((count,), torch.nan) if knows_full else None
        for (begin, end), turn in zip(self.turns, self.sampled, strict=True):
            logps[begin:end], entropies[begin:end] = turn.logps, turn.entropies
            trainable[begin:end] = error is None
            if full is not None and turn.full_logps is not None:
                full[begin:end] = turn.full_logps
        other = self.other
        ending = str(other.ending) if error is None else "error"
        return Rollout(
            completion_ids=torch.tensor(self.ids, dtype=torch.int64),
            logps=logps,
            entropies=entropies,
            text=self.sampled[-1].text if len(self.turns) == 1 else decode(self.ids),
            finish_reason="length" if ending == "length" else "stop",
            policy_version=version,
            trainable=trainable,
            full_logps=full,
            episode=Episode(
                prompt_ids=tuple(other.prompt_ids) or self.prompt.ids,
                messages=other.messages,
                turns=tuple(self.turns),
                ending=ending,
                prompt=other.added,
                kind=other.kind_name,
                reward=reward,
                turn_rewards=rewards_of_turns(other.turn_rewards, reward),
                calls=dict(other.calls),
                failures=other.failures,
                seconds=other.seconds,
                environment=other.environment,
                error=error,
            ),
        )


@dataclass
class EpisodeSampler:
    """A `StartingSampler` of episodes, on top of an engine that samples turns.

    Args:
        engine: continues tokens.
        begin: (prompt, generation) → what answers in that episode.
        decode: tokens → text.
        max_length: the most tokens of an episode after its prompt, the environment's included.
        max_turn_length: the most tokens of a turn; 0: as many as the episode has room for.
        batch_size: the most episodes that are under way at once; 0: all of them.
        stop: asked while it samples. Once it is True, `sample` raises SamplingStopped.
        budget: the episodes that may be dropped.
        world: the ranks.
    """

    engine: TurnEngine
    begin: Callable[[Prompt, int], OtherSide]
    decode: Callable[[list[int]], str]
    max_length: int
    max_turn_length: int = 0
    batch_size: int = 256
    stop: Callable[[], bool] = lambda: False
    budget: ErrorBudget = field(default_factory=ErrorBudget)
    world: World = ALONE
    _told: bool = False

    def sample(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> list[RolloutGroup]:
        """See `Sampler.sample`."""
        return self.start(prompts, num_generations, greedy=greedy).now()

    def start(
        self, prompts: Sequence[Prompt], num_generations: int, *, greedy: bool = False
    ) -> RolloutsPending:
        """See `StartingSampler.start`."""
        self.budget.forget_waiting()
        session = self.engine.turns(prompts, greedy=greedy)
        jobs = [(prompt, g) for prompt in prompts for g in range(num_generations)]
        sample = partial(self._sample, session, jobs)
        return RolloutsPending(prompts, num_generations, sample, self.world)

    def sync(self) -> None:
        """See `Sampler.sync`."""
        self.engine.sync()

    def _sample(self, session: Any, jobs: Sequence[tuple[Prompt, int]], progress: Progress) -> list[Rollout]:
        rollouts: list[Rollout] = []
        size = self.batch_size or max(1, len(jobs))  # a rank may have no prompts
        with session as turns:
            for start in range(0, len(jobs), size):
                rollouts += self._batch(turns, jobs[start : start + size], start, progress)
        self._tell_of_prompts(rollouts, [prompt.position for prompt, _ in jobs])
        return rollouts

    def _tell_of_prompts(self, rollouts: Sequence[Rollout], positions: Sequence[int]) -> None:
        """Says once if members of a group have different prompts, so that prompts are not shared."""
        kept = [
            (p, r.episode)
            for p, r in zip(positions, rollouts, strict=True)
            if r.episode and not r.episode.error
        ]
        if not self._told and len({(p, e.prompt_ids) for p, e in kept}) > len({p for p, _ in kept}):
            self._told = True
            log.warning(
                "reset returned different prompts within a group, so prompts are not shared. Draw the task from `seed` to "
                "give a group one prompt."
            )

    def _batch(
        self, turns: Turns, jobs: Sequence[tuple[Prompt, int]], start: int, progress: Progress
    ) -> list[Rollout]:
        """Samples episodes that go on together. Those for which there is no room follow once others have ended.

        Args:
            turns: the engine's session.
            jobs: prompts, with the numbers of the episodes in their groups.
            start: the number of the first of them among all.
            progress: gets each episode that has ended.

        Returns:
            The episodes, in order.
        """
        found: dict[int, Rollout] = {}
        most, until, pause = len(jobs), time.monotonic() + PATIENCE, 0.1
        while left := [number for number in range(len(jobs)) if number not in found][:most]:

            def ended(place: int, played: Rollout | NoRoom, left: list[int] = left) -> None:
                if isinstance(played, Rollout):
                    progress.ended(start + left[place], played)

            sampled = self._play_together(turns, [jobs[number] for number in left], progress, ended)
            begun = {n: r for n, r in zip(left, sampled, strict=True) if isinstance(r, Rollout)}
            found |= begun
            if begun:
                most, until, pause = 2 * len(begun), time.monotonic() + PATIENCE, 0.1
            elif time.monotonic() > until:
                raise ValueError(f"{sampled[0]}; no episode could begin for {PATIENCE:g} seconds")
            elif progress.given_up or self.stop():
                raise SamplingStopped(f"stopped while waiting for room: {sampled[0]}")
            else:
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
        return [found[number] for number in range(len(jobs))]

    def _play_together(
        self,
        turns: Turns,
        jobs: Sequence[tuple[Prompt, int]],
        progress: Progress,
        ended: Callable[[int, Rollout | NoRoom], None],
    ) -> list[Rollout | NoRoom]:
        """Plays the episodes that can begin now. Returns for each its rollout, or why it can't begin.

        Args:
            turns: the engine's session.
            jobs: prompts, with the numbers of the episodes in their groups.
            progress: tells whether the episodes are given up.
            ended: called with each episode that has ended, and its place in `jobs`.
        """
        episodes = [_Growing(prompt, g, self.begin(prompt, g)) for prompt, g in jobs]
        pieces = [self._play(episode, turns) for episode in episodes]
        try:
            return sample_together(pieces, lambda: progress.given_up or self.stop(), turns, ended)
        except BaseException:  # the reason to report, whatever closing the others raises
            close_all([episode.other for episode in episodes])
            raise

    def _play(self, episode: _Growing, turns: Turns) -> Waiting[Rollout | NoRoom]:
        """Plays one episode from its prompt to its end. Returns NoRoom where it can't begin now."""
        other, reward = episode.other, None
        failure: EpisodeFailed | None = None
        try:
            yield from other.open()
            while other.ending is None:
                request = episode.request(self.max_length, self.max_turn_length)
                episode.add((yield from turns.ask(request)))
                episode.ids += yield from self._answer(episode)
            reward = yield from other.final_reward()
        except NoRoom as full:
            with suppress(EpisodeFailed):  # it is no episode yet
                yield from other.close()
            return full
        except EpisodeFailed as error:
            self.budget.drop(error)
            failure = error
        try:
            yield from other.close()
        except EpisodeFailed as error:
            if failure is None:
                self.budget.drop(error)
                failure = error
        reason = None if failure is None else str(failure)
        return episode.rollout(None if failure else reward, self.decode, turns.version, reason)

    def _answer(self, episode: _Growing) -> Waiting[list[int]]:
        turn = episode.sampled[-1]
        room = self.max_length - len(episode.ids)
        cut = turn.finish_reason == "length"
        return episode.other.reply(turn.completion_ids.tolist(), turn.text, cut, room)
