"""An episode's other side: it reads the model's turns, calls tools or the environment, and says what the model reads next."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..common.waiting import Waiting
from ..types import Messages, NoRoom, Prompt
from .calls import Call, Turn
from .continuation import CannotContinue, Continuation
from .contract import EnvironmentFailed, EnvironmentKind, Observation, episode_seed, kind_of, with_first
from .setting import Setting
from .tools import Tool, answer_text, shorten, unknown_tool
from .workers import TimedOut

CLOSING = 10.0  # seconds that closing an environment that comes too late may take
Ending = Literal["done", "no_call", "turns", "length", "error"]


@dataclass
class Dialogue:
    """One episode: what has been said, and what comes next.

    Args:
        setting: what all episodes share.
        prompt: the row's prompt.
        generation: the number of the episode in its group.

    Example: `dialogue.prompt_ids`, then for each sampled turn `yield from dialogue.reply(ids)`.
    """

    setting: Setting
    prompt: Prompt
    generation: int
    prompt_ids: tuple[int, ...] = ()
    opening: Messages = field(default_factory=list)  # the prompt, with what `reset` said
    added: Messages | None = None  # the prompt, where `reset` added to it
    schemas: list[dict[str, Any]] = field(default_factory=list)  # the tools that the prompt shows
    messages: Messages = field(default_factory=list)  # what was said after the prompt
    ending: Ending | None = None
    reward: float = 0.0  # what the environment's steps have given so far
    turn_rewards: list[float] = field(default_factory=list)  # the same, by the turn that it was given for
    environment: Any = None
    turns: int = 0
    calls: Counter[str] = field(default_factory=Counter)  # by the tool's name
    failures: int = 0  # calls that were answered by an error
    seconds: float = 0.0  # how long it has waited for its tools and its environment
    _before: list[int] = field(default_factory=list)  # the tokens of earlier turns, and of what followed them
    _under_way: list[Future[Any]] = field(default_factory=list)
    _closed: bool = False
    _chosen: EnvironmentKind | None = None

    def open(self) -> Waiting[None]:
        """Makes the environment, resets it, and renders the prompt.

        Raises:
            EnvironmentFailed: the environment raised, or broke its contract.
            NoRoom: it can't begin now. After `close`, another dialogue may be begun later.
        """
        kind = self._chosen = self._kind()
        self._tools, first = dict(self.setting.tools), None
        if kind is not None:
            yield from self._ask(lambda: self._make(kind), "__init__")
            self._tools |= kind.tools_of(self.environment)
            if hasattr(self.environment, "reset"):
                seed = episode_seed(self.setting.seed, self.prompt.position)
                columns = {**self.prompt.columns, "prompt": self.prompt.content}
                given = copy.deepcopy(kind.arguments(columns, seed, self.generation))
                first = yield from self._ask(lambda: self.environment.reset(**given), "reset")
        self._render(first)
        most = self.setting.limits.max_prompt
        if most is not None and len(self.prompt_ids) > most:
            raise EnvironmentFailed(
                f"{self._where('reset')}: the prompt has {len(self.prompt_ids)} tokens with what reset added, over {most}"
            )

    def reply(self, ids: Sequence[int], text: str, cut: bool, room: int) -> Waiting[list[int]]:
        """Answers a turn.

        Args:
            ids: the turn's tokens, with the end token where there is one.
            text: what they say, with special tokens, without the end token.
            cut: whether the turn was cut by its length.
            room: tokens that the episode may still have.

        Returns:
            The tokens that follow; none where the episode ends here (see `ending`).
        """
        self.turns += 1
        self.turn_rewards.append(0.0)
        text = self.setting.form.prefix + text
        turn = Turn(text)
        if self._tools:
            turn = self.setting.parser.parse(text, sum(self.calls.values()), self._read)
        self._before += ids
        turn = replace(turn, calls=tuple(self._known(call) for call in turn.calls))
        self.messages.append(turn.as_message())
        if cut:
            return self._end("length")
        following = yield from self._following(turn)
        self.messages += following
        if self.ending is not None:
            return []
        if not following:
            return self._end("no_call")
        if self.turns >= self.setting.limits.max_turns:
            return self._end("turns")
        found = self.tokens_between(ids, turn, following)
        self._before += found
        return self._end("length") if len(found) >= room else found

    def _read(self) -> str:
        """Returns the text of everything that the model has read before the present turn."""
        return self.setting.tokenizer.decode([*self.prompt_ids, *self._before], skip_special_tokens=False)

    def close(self) -> Waiting[None]:
        """Closes the environment, whatever has happened. Waits for its calls that are under way first."""
        yield [call for call in self._under_way if not call.done()]
        if self._closed:
            return
        self._closed = True
        close = getattr(self.environment, "close", None)
        if close is not None:
            yield from self._ask(close, "close")

    @property
    def kind_name(self) -> str | None:
        """The class of the environment; None without one."""
        return None if self._chosen is None else self._chosen.name

    def final_reward(self) -> Waiting[float | None]:
        """Returns the environment's own reward: `get_reward()`, or the sum of its steps' rewards; None without either."""
        if self.environment is None:
            return None
        kind = self._chosen
        if kind is not None and kind.has_reward:
            return self._number(
                (yield from self._ask(self.environment.get_reward, "get_reward")), "get_reward"
            )
        return self.reward if kind is not None and kind.has_steps else None

    # ------------------------------------------------------------------- the prompt

    def _make(self, kind: EnvironmentKind) -> None:
        """Makes the environment, on the thread of a worker. One that comes too late is closed at once."""
        self.environment = made = kind.make()
        close = getattr(made, "close", None)
        if self._closed and close is not None:
            found = close()
            if inspect.isawaitable(found):
                self.setting.workers.submit(lambda: found, is_async=True, seconds=CLOSING)

    def _kind(self) -> EnvironmentKind | None:
        kinds = self.setting.kinds
        found = kind_of(kinds, self.prompt.columns)
        if kinds and found is None:
            name = self.prompt.columns.get("environment")
            raise EnvironmentFailed(
                f"{self.prompt.source}: the column `environment` is {name!r}; expected one of {', '.join(kinds)}"
            )
        return found

    def _render(self, first: Any) -> None:
        """Renders the prompt with the tools, and with what `reset` returned."""
        schemas = [dict(tool.schema) for tool in self._tools.values()]
        own = self.prompt.columns.get("tools")
        self.schemas = schemas + [schema for schema in own or () if isinstance(schema, dict)]
        self.opening = with_first(self.prompt.content, first, self._where("reset"))
        if first is not None:
            self.added = self.opening
        self.tokenize(is_as_read=first is None)

    def tokenize(self, is_as_read: bool) -> None:
        """Tokenizes the prompt. If `reset` returned None, reuses the tokens found when the data was read, if there are any."""
        form = self.setting.form
        kwargs = form.kwargs_of(self.prompt.columns, self.prompt.source)
        self._continuation = Continuation(
            self.setting.tokenizer, self.setting.eos_ids, self.schemas, kwargs, form.prefix
        )
        if is_as_read and self.prompt.ids:
            self.prompt_ids = self.prompt.ids
            return
        if not any(message["role"] == "user" for message in self.opening):
            raise EnvironmentFailed(
                f"{self._where('reset')}: there is nothing for the model to read; without --dataset, reset returns the "
                "prompt: a text or messages"
            )
        self.prompt_ids = tuple(self._continuation.full_ids(self.opening))

    def tokens_between(self, ids: Sequence[int], turn: Turn, following: Messages) -> list[int]:
        """Returns the tokens that follow a turn, up to where the model goes on."""
        end = ids[-1] if ids and ids[-1] in self.setting.eos_ids else None
        calls = [call.as_message() for call in turn.calls]
        try:
            return self._continuation.ids(end, calls, following, sum(self.calls.values()) - len(calls))
        except CannotContinue as error:
            raise EnvironmentFailed(f"{self.prompt.source}: the turn can't be followed: {error}") from error

    def _where(self, method: str) -> str:
        return f"{self.prompt.source}: {self.kind_name or 'environment'}.{method}"

    # ------------------------------------------------------------------- answers

    def _known(self, call: Call) -> Call:
        """Returns the call, renamed to `unknown` if no tool has its name: chat templates write names verbatim."""
        if call.problem is not None or call.name in self._tools:
            return call if call.name in self._tools else replace(call, name="unknown")
        return replace(call, name="unknown", problem=unknown_tool(call.name, self._tools))

    def _following(self, turn: Turn) -> Waiting[Messages]:
        if turn.calls:
            return (yield from self._called(turn.calls))
        if self._chosen is None or not self._chosen.has_steps:
            return []
        seen = yield from self._ask(lambda: self.environment.step(turn.content), "step")
        if not isinstance(seen, Observation):
            raise EnvironmentFailed(
                f"{self._where('step')}: returned {type(seen).__name__}; expected an Observation"
            )
        self._earn(seen.reward, "step")
        said = seen.content
        messages = [{"role": "user", "content": answer_text(said)}] if not isinstance(said, list) else said
        if seen.done:
            self.ending = "done"
        return messages

    def _called(self, calls: Sequence[Call]) -> Waiting[Messages]:
        """Makes a turn's calls, one after another where they share an environment, else at the same time."""
        answers: list[str | Future[Any]] = []
        for call in calls:
            self.calls[call.name] += 1
            tool = self._tools.get(call.name)
            problem = call.problem
            if problem is None and tool is not None:
                problem = tool.problem_with(call.arguments)
            if problem is not None or tool is None:
                self.failures += 1
                answers.append(f"Error: {problem}")
                continue
            answers.append(self._begin(tool, call))
            if self.environment is not None:  # its methods see each other's effects
                yield from self._wait([answers[-1]])
        yield from self._wait([answer for answer in answers if isinstance(answer, Future)])
        most = self.setting.limits.max_tool_tokens
        return [
            {
                "role": "tool",
                "tool_call_id": call.id,
                "name": call.name,
                "content": shorten(self._answer(call, answer), most, self.setting.tokenizer),
            }
            for call, answer in zip(calls, answers, strict=True)
        ]

    def _wait(self, calls: list[Any]) -> Waiting[None]:
        began, self._under_way = time.monotonic(), calls
        yield calls
        self.seconds += time.monotonic() - began

    def _begin(self, tool: Tool, call: Call) -> Future[Any]:
        arguments = copy.deepcopy(call.arguments)  # a tool may change them
        return self.setting.workers.submit(
            lambda: tool.function(**arguments),
            is_async=tool.is_async,
            seconds=self.setting.limits.tool_timeout,
        )

    def _answer(self, call: Call, answer: str | Future[Any]) -> str:
        """Returns what the model reads of a call: its result, or its error."""
        if isinstance(answer, str):
            return answer
        error, limits = answer.exception(), self.setting.limits
        if isinstance(error, EnvironmentFailed):  # no fault of the call
            raise EnvironmentFailed(f"{self._where(call.name)}: {error}") from error
        if error is None:
            try:
                text = answer_text(self._observed(call.name, answer.result()))
                # What is far beyond the episode's room ends it anyway.
                return text if limits.max_tool_tokens else text[: 100 * limits.max_tokens]
            except EnvironmentFailed:
                raise
            except Exception as unprintable:  # noqa: BLE001 - an object's own code
                error = unprintable
        # SystemExit and KeyboardInterrupt too: they were raised on the tool's thread, and must not end the run.
        problem = f"{call.name} raised {type(error).__name__}: {error}"
        if isinstance(error, TimedOut):
            problem = f"{call.name}: {error}"
        self.failures += 1
        return f"Error: {answer_text(problem)}"

    def _observed(self, name: str, value: Any) -> Any:
        """Returns a tool's answer. A server's tool answers an Observation, which may end the episode, as `step` does."""
        if not isinstance(value, Observation):
            return value
        self._earn(value.reward, name)
        self.ending = "done" if value.done else self.ending
        return value.content

    def _earn(self, value: Any, method: str) -> None:
        """Adds a step's reward to the episode's and to the present turn's."""
        reward = self._number(value, method) or 0.0
        self.reward += reward
        self.turn_rewards[-1] += reward

    def _number(self, value: Any, method: str) -> float | None:
        """Returns a reward of the environment as a number; None stays None."""
        try:
            number = None if value is None else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if number is not None and not math.isfinite(number):
            raise EnvironmentFailed(f"{self._where(method)}: the reward {value!r} is no finite number")
        return number

    def _ask(self, call: Callable[[], Any], method: str) -> Waiting[Any]:
        """Calls the environment itself. What it raises ends the run, or the episode."""
        is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
            getattr(self.environment, method, None)
        )
        limit = self.setting.limits.tool_timeout
        under_way = self.setting.workers.submit(call, is_async=is_async, seconds=limit)
        yield from self._wait([under_way])
        error = under_way.exception()
        if isinstance(error, TimedOut):
            raise EnvironmentFailed(f"{self._where(method)}: {error}; see --tool_timeout") from error
        if isinstance(error, NoRoom):
            raise error
        if isinstance(error, EnvironmentFailed):
            raise EnvironmentFailed(f"{self._where(method)}: {error}") from error
        if error is not None:
            raise EnvironmentFailed(
                f"{self._where(method)} raised {type(error).__name__}: {error}"
            ) from error
        return under_way.result()

    def _end(self, ending: Ending) -> list[int]:
        self.ending = ending
        return []
