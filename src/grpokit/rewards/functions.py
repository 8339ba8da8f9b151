"""Calls the reward functions of a step, each with what it asks for, and checks what they return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.copies import own_copy
from ..common.imports import raised_at
from ..common.text import one_line
from ..types import SAMPLED, Messages, Prompt, Rollout
from .calling import GivenUp, TimeOut, awaited_together, time_limit
from .registry import Reward, arguments, check_parameters, code_of, defined_at
from .reporting import Notes, Report
from .signatures import AtCompletion, is_async

# Arguments about episodes. A reward function gets them only if it names them.
OF_EPISODES = ("environments", "environment_rewards")


class RewardError(ValueError):
    """A reward function raised, took too long, or returned something other than rewards. The message says where."""


Stuck = Callable[[RewardError], None]
"""Ends the process when a function keeps catching its time limit. Its argument is the error that names the function."""

Pairs = Sequence[tuple[Prompt, Rollout]]  # completions with their prompts


@dataclass(frozen=True)
class _Call:
    """A function with the completions that it applies to."""

    reward: Reward
    rows: Sequence[int]  # their numbers among all B completions
    pairs: Pairs
    available: Mapping[str, Any]  # what it may ask for, by name
    seconds: float  # its time limit; 0: none
    notes: Notes = field(default_factory=Notes)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """Returns the arguments that the function asks for, as its own copies.

        So it may edit them: the next function, the group's next completion, the logs and later steps still see the
        dataset's values.
        """
        positional, by_name = arguments(self.reward, self.available, only_named=(*OF_EPISODES, "log_count"))
        # An environment is the episode's own, and may not be one that can be copied.
        return own_copy(positional), {
            name: values if name in OF_EPISODES else own_copy(values) for name, values in by_name.items()
        }

    def failure(self, error: BaseException, among: Sequence[Reward] = ()) -> RewardError:
        """Makes the error that says which function failed, where, and for which completions.

        `among`: the async functions that ran together, where it is not known which of them failed.
        """
        reward = self.reward
        at = getattr(reward.fn, "at", None)  # set by a function that is called per completion
        if isinstance(error, AtCompletion):
            error, at = error.error, error.row
        code = code_of(reward.fn)
        deep = error.__traceback__ is not None and error.__traceback__.tb_next is not None
        where = raised_at(error, code.co_filename) if code and deep else defined_at(reward.fn)
        who = (
            f"reward function `{reward.name}`"
            if len({each.name for each in among}) < 2
            else (
                f"one of the async reward functions {', '.join(dict.fromkeys(f'`{each.name}`' for each in among))}"
            )
        )
        what = f"raised {type(error).__name__}: {one_line(error)}"
        if isinstance(error, TimeOut):
            what = f"took longer than --reward_timeout {self.seconds:g} seconds; raise that (0: no limit)"
        which = (
            f"a completion of {self.pairs[at][0].source}"
            if at is not None
            else f"{len(self.pairs)} completions of {_sources(self.pairs)}"
        )
        if reward.kind == "built in" and isinstance(error, ValueError):  # its message names the option
            return RewardError(f"{reward.name}: {one_line(error)} (while scoring {which})")
        place = "" if reward.kind == "built in" else f"{where}: "  # a line of grpokit helps no user
        return RewardError(f"{place}{who} {what} (while scoring {which})")


Score = float | Tensor
"""A completion's reward, or those of its T tokens [T] float64, whose sum is the completion's."""


def call_all(
    rewards: Sequence[Reward],
    parts: Sequence[Pairs],
    timeout: float,
    stuck: Stuck | None,
    reports: Sequence[Report],
) -> list[list[list[Score]]]:
    """Calls every function once for each part, with the completions that it applies to.

    Part after part, and function after function; then the async functions, of all parts together.

    Args:
        rewards: F reward functions.
        parts: completions with their prompts; B in a part.
        timeout: seconds that a function may take; 0: no limit.
        stuck: called where a function catches its time limit again and again.
        reports: collect what the functions log, one for each part.

    Returns:
        [F][B] scores of each part, NaN where a function doesn't apply.

    Raises:
        RewardError: a function failed. The message names it and, where known, file:line and the dataset's row.
    """
    calls = [_calls_of(rewards, part, timeout, report) for part, report in zip(parts, reports, strict=True)]
    wanted = [call for several in calls for call in several if call.rows]
    later = [call for call in wanted if is_async(call.reward.fn)]
    returned = {id(call): _call(call, stuck) for call in wanted if not is_async(call.reward.fn)}
    if later:
        returned |= zip(map(id, later), _await_all(later, until_failure=len(parts) > 1), strict=True)
    return [
        [_row(call, returned.get(id(call)), len(part), report) for call in several]
        for several, part, report in zip(calls, parts, reports, strict=True)
    ]


def _row(call: _Call, returned: Any, size: int, report: Report) -> list[Score]:
    """Returns a function's rewards of all `size` completions of a part, and hands what it has logged to the report."""
    row: list[Score] = [math.nan] * size
    if call.rows:
        for place, number in zip(call.rows, _checked(returned, call), strict=True):
            row[place] = number
        try:
            report.take(call.reward.name, call.notes, call.rows, size)
        except ValueError as error:
            who = f"{defined_at(call.reward.fn)}: reward function `{call.reward.name}`"
            raise RewardError(f"{who} {error}") from error
    return row


def _calls_of(rewards: Sequence[Reward], pairs: Pairs, timeout: float, report: Report) -> list[_Call]:
    available = _available(pairs)
    for reward in rewards:
        check_parameters(reward, available.keys() - set(SAMPLED))  # an evaluation set may lack a column
    return [_call_of(reward, pairs, available, timeout, report) for reward in rewards]


def _call_of(
    reward: Reward, pairs: Pairs, available: Mapping[str, list[Any]], timeout: float, report: Report
) -> _Call:
    rows = [row for row, (prompt, _) in enumerate(pairs) if reward.applies_to(prompt)]
    if len(rows) < len(pairs):
        available = {name: [values[row] for row in rows] for name, values in available.items()}
    notes = Notes() if reward.kind == "built in" else Notes(report.is_taken)
    logged = {
        "trainer_state": report.state,
        "log_metric": notes.log_metric,
        "log_extra": notes.log_extra,
        "log_count": notes.log_count,
    }
    seconds = timeout if reward.limited else 0.0
    return _Call(reward, rows, [pairs[row] for row in rows], {**available, **logged}, seconds, notes)


def _available(pairs: Pairs) -> dict[str, list[Any]]:
    """Collects the columns, and what was sampled, by name: lists of B entries, one per completion."""
    names = dict.fromkeys(name for prompt, _ in pairs for name in prompt.columns)
    episodes = [rollout.episode for _, rollout in pairs if rollout.episode is not None]
    of_episodes = {
        "environments": [episode.environment for episode in episodes],
        "environment_rewards": [(episode.kind, episode.reward) for episode in episodes],
    }
    return {
        **{name: [prompt.columns.get(name) for prompt, _ in pairs] for name in names},
        "prompts": [rollout.prompt_content(prompt) for prompt, rollout in pairs],
        "completions": [_completion(prompt, rollout) for prompt, rollout in pairs],
        "completion_ids": [rollout.completion_ids.tolist() for _, rollout in pairs],
        **(of_episodes if episodes else {}),
    }


def _completion(prompt: Prompt, rollout: Rollout) -> str | Messages:
    """Returns the completion as reward functions get it: text, or in a chat the messages that follow, as in TRL."""
    if rollout.episode is not None:
        return rollout.episode.messages  # each function gets a copy of its own
    text = prompt.prefix + rollout.text
    return text if isinstance(prompt.content, str) else [{"role": "assistant", "content": text}]


def _call(call: _Call, stuck: Stuck | None) -> Any:
    """Returns what the function returned. Raises RewardError."""
    positional, by_name = call.arguments()

    def give_up() -> None:
        if stuck is not None:
            stuck(call.failure(TimeOut()))

    try:
        with time_limit(call.seconds, give_up):
            return call.reward.fn(*positional, **by_name)
    # A reward may call exit(), which must not end the run without an explanation.
    except (Exception, SystemExit, TimeOut) as error:
        raise call.failure(error) from error


def _await_all(calls: Sequence[_Call], until_failure: bool) -> list[Any]:
    """Awaits async functions together and returns what they returned. Raises RewardError for the first that failed.

    `until_failure`: gives up the other calls once one has failed.
    """

    async def called(call: _Call) -> Any:
        positional, by_name = call.arguments()
        return await call.reward.fn(*positional, **by_name)

    try:
        outcomes = awaited_together([(called(call), call.seconds) for call in calls], until_failure)
    except TimeOut as error:  # one of them blocked the event loop
        raise calls[0].failure(error, among=[call.reward for call in calls]) from error
    for call, outcome in zip(calls, outcomes, strict=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, GivenUp):
            raise call.failure(outcome) from outcome
    return outcomes


def _checked(returned: Any, call: _Call) -> list[Score]:
    """Converts a function's result to a score for each of its completions. Raises RewardError unless it is one each."""
    reward = call.reward
    who = f"{defined_at(reward.fn)}: reward function `{reward.name}`"
    expected = f"expected a list of {len(call.pairs)}, one number or None for each completion"
    if isinstance(returned, np.ndarray | Tensor):
        if returned.ndim != 1:
            raise RewardError(f"{who} returned an array of shape {tuple(returned.shape)}; {expected}")
        returned = returned.tolist()
    if not isinstance(returned, list | tuple):
        raise RewardError(
            f"{who} returned {one_line(repr(returned), 80)}, a {type(returned).__name__}; {expected}"
        )
    if len(returned) != len(call.pairs):
        raise RewardError(f"{who} returned {len(returned)} rewards; {expected}")
    numbers: list[Score] = []
    for value, (prompt, rollout) in zip(returned, call.pairs, strict=True):
        number = _of_tokens(value, len(rollout.completion_ids)) if _is_list(value) else _number(value)
        if number is None:
            raise RewardError(
                f"{who} returned {one_line(repr(value), 80)} for a completion of {prompt.source}, "
                f"{one_line(repr(rollout.text), 80)}; expected a finite number, or None where it doesn't apply, or a "
                f"list with a number or None for each of its {len(rollout.completion_ids)} tokens"
            )
        numbers.append(number)
    return numbers


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 1)


def _of_tokens(value: Any, length: int) -> Tensor | None:
    """Returns rewards of a completion's tokens [T] float64, NaN for None; None unless they are `length` numbers or Nones."""
    numbers = [_number(one) for one in value]
    known = [number for number in numbers if number is not None]
    return torch.tensor(known, dtype=torch.float64) if len(known) == len(numbers) == length else None


def _number(value: Any) -> float | None:
    """Returns a finite number as a float, NaN for None, and None for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an int beyond float64's range
        return None
    return number if math.isfinite(number) else None


def _sources(pairs: Pairs) -> str:
    sources = list(dict.fromkeys(prompt.source for prompt, _ in pairs))
    return ", ".join(sources[:3]) + (f" and {len(sources) - 3} more rows" if len(sources) > 3 else "")
