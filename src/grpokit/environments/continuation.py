"""What a chat template puts between two turns, as tokens behind the tokens that were sampled.

Sampled tokens are never decoded and encoded again. A made-up conversation is rendered with and without the messages that
follow a turn, and what comes after the turn's end token is the difference. A turn of the model is only its calls' names and
ids there, so thinking that a template would drop, or history that it would rewrite, stays as the model wrote it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..common.text import one_line
from ..types import Messages
from .rendering import (
    CONTENT_MARK,
    MARK,
    CannotContinue,
    common_length,
    from_the_user,
    marked,
    render_alike,
    text_of,
)

OTHERWISE = "its chat template writes a turn in another way once messages follow it"
ANCHOR = "a"  # a letter behind which a piece is encoded: a tokenizer may begin a text with a space
QUESTION: Messages = [{"role": "user", "content": "a question"}]


@dataclass
class Continuation:
    """Finds the tokens between two turns.

    Args:
        tokenizer: the model's, with a chat template.
        eos_ids: the tokens that end a turn.
        tools: the JSON schemas of the tools, as the template gets them.
        template_kwargs: other arguments for the template.
        prefix: the beginning of every turn of the model, which is not sampled.

    Example: `Continuation(tokenizer, {2}).ids(2, [], [{"role": "user", "content": "and 3 + 4?"}])`
    """

    tokenizer: Any
    eos_ids: Collection[int]
    tools: Sequence[dict[str, Any]] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""
    asked: Messages = field(default_factory=lambda: QUESTION)  # what is made up before the turn
    tool_refusal: str = field(default="", init=False)  # why the template refuses messages of the role `tool`

    def ids(
        self, end: int | None, calls: Sequence[dict[str, Any]], following: Messages, earlier: int = 0
    ) -> list[int]:
        """Returns the tokens that follow a sampled turn, up to where the model goes on.

        Args:
            end: the end token that was sampled last; None: the turn ended without one, by a stop string.
            calls: the turn's tool calls, as messages have them.
            following: the messages that answer it.
            earlier: calls of the turns before it; some templates number calls.

        Returns:
            The tokens, without the end token.

        Raises:
            CannotContinue: the template writes the turn otherwise once messages follow it, or doesn't write the messages.
        """
        if earlier and calls and self._numbers_calls:
            return self._behind(earlier).ids(end, calls, following)
        ending = "" if end is None else self._text_of(end)
        text = self._between(ending, calls, following)
        pieces = self._cut_at_tokens_in_content(ending, calls, following, text)
        pieces[-1] += self.prefix
        return self._encode(ending, pieces, end)

    def without_end(self, text: str) -> str:
        """Returns a rendered turn without its end token and what follows it."""
        end, length = _last(text, 0, self._endings(""))
        return text[:end] if length else text

    def full_ids(self, messages: Messages) -> list[int]:
        """Returns the tokens of a whole conversation, up to where the model goes on."""
        text = self.render(messages, goes_on=True) + self.prefix
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    # ------------------------------------------------------------------- text

    def _between(self, ending: str, calls: Sequence[dict[str, Any]], following: Messages) -> str:
        """Returns the text between a turn's end token and where the model goes on."""
        text = self._difference(ending, calls, following)
        if all(text_of(m.get("content")).strip() in text for m in following):
            return text
        others = marked(following)  # a template may write contents as JSON
        written = self._difference(ending, calls, others)
        lost = [m["role"] for m in others if m["content"] not in written]
        if lost:
            raise CannotContinue(
                f"its chat template leaves out the content of messages of the role {lost[0]}"
            )
        return text

    def _difference(self, ending: str, calls: Sequence[dict[str, Any]], following: Messages) -> str:
        """Returns what a rendering with the messages that follow has behind the turn."""
        if any(m["role"] == "tool" for m in following) and not self.has_tool_role:
            calls, following = [], from_the_user(following)
        alone, whole = self._render_both(calls, following)
        if (MARK in alone) != (MARK in whole):
            raise CannotContinue(OTHERWISE)
        if MARK not in alone and not calls:
            raise CannotContinue("its chat template leaves out the content of messages of the role assistant")
        if MARK in alone:
            alone, whole = (text.partition(MARK)[2] for text in (alone, whole))
            begins = 0
        else:  # with calls, some templates leave the content out
            begins = common_length(alone, self.render(self.asked, goes_on=True))
        try:
            return self._behind_the_end(ending, alone, whole, begins)
        except CannotContinue:
            written = self._render_both(calls, marked(following)[:1])[1].rpartition(MARK)[2]
            rest = self._behind_the_last_end(ending, whole, begins, written)
            if rest is None:
                raise
        return rest

    def _behind_the_end(self, ending: str, alone: str, whole: str, begins: int) -> str:
        """Returns the text after the turn's end in `whole`. Finds that end by comparison with `alone`, where the turn is last."""
        endings = self._endings(ending)
        # The last end that both have; else a last turn ends otherwise than one that messages follow.
        end, length = _last(alone[: common_length(alone, whole)], begins, endings)
        both = length > 0
        if not both:
            end, length = _last(alone, begins, endings)
        kept = alone[:end] if length else alone.rstrip()
        closing = max((t for t in self._special if kept.rstrip().endswith(t)), key=len, default="")
        if not both and closing and begins <= len(kept.rstrip()) - len(closing):
            # A token that is no end of sequence for the model has closed the turn already.
            kept, length = kept.rstrip()[: -len(closing)], len(closing)
        if not whole.startswith(kept):
            raise CannotContinue(OTHERWISE)
        rest = whole[len(kept) :]
        if length:
            token = max((t for t in self._added if rest.startswith(t)), key=len, default="")
            if not token:
                raise CannotContinue(
                    "its chat template ends a turn without an end token once messages follow it"
                )
            return rest[len(token) :] if ending else rest
        # Without an end token of its own, such as GLM's: the next message's first token ended the turn.
        if ending and rest.lstrip().startswith(ending):
            return rest.lstrip()[len(ending) :]
        return rest

    def _behind_the_last_end(self, ending: str, whole: str, begins: int, marked: str) -> str | None:
        """Returns what a rendering has behind the last end token before the answer; None without one.

        For templates that write a last turn in another way than a turn that messages follow.
        """
        answer = common_length(whole, marked)  # where the content begins
        end, length = _last(whole[:answer], begins, self._endings(ending))
        if not length:
            return None
        return whole[end + length :] if ending else whole[end:]

    def _behind(self, earlier: int) -> Continuation:
        """Returns the same with a made-up conversation that has made so many calls."""
        asked = [*QUESTION]
        for number in range(earlier):
            call = {"id": f"past{number:05d}", "function": {"name": "tool"}}
            answer = {"role": "tool", "tool_call_id": call["id"], "name": "tool", "content": "an answer"}
            asked += [self._turn([call], ""), answer]
        return replace(self, asked=asked)

    @cached_property
    def _numbers_calls(self) -> bool:
        """True if the template numbers calls: an earlier call changes only digits in the text that follows a call."""
        call = {"id": "call00000", "function": {"name": "tool"}}
        answer = {"role": "tool", "tool_call_id": "call00000", "name": "tool", "content": CONTENT_MARK}
        try:
            first, second = (each._difference("", [call], [answer]) for each in (self, self._behind(1)))
        except CannotContinue:
            return False
        return first != second and re.sub(r"\d+", "0", first) == re.sub(r"\d+", "0", second)

    @cached_property
    def _tool_probe(self) -> str:
        """How the template writes a turn with a call and text, and the tool's answer; "" where it refuses them."""
        call = {"id": "call00000", "function": {"name": "tool"}}
        answer = {"role": "tool", "tool_call_id": "call00000", "name": "tool", "content": CONTENT_MARK}
        try:
            return self.render([*QUESTION, self._turn([call], MARK), answer], goes_on=True)
        except CannotContinue as error:
            self.tool_refusal = one_line(error.__cause__, 120)
            return ""

    @property
    def has_tool_role(self) -> bool:
        """Whether the template writes messages of the role `tool`."""
        return CONTENT_MARK in self._tool_probe

    def _turn(self, calls: Sequence[dict[str, Any]], content: str) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            turn["tool_calls"] = [
                {
                    "id": call.get("id"),
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": {},
                    },
                }
                for call in calls
            ]
        return turn

    def _render_both(self, calls: Sequence[dict[str, Any]], following: Messages) -> tuple[str, str]:
        """Renders a made-up turn, alone and with the messages that follow it."""
        # Some templates write a turn's text behind the answers to its calls; then the turn has none.
        probe = self._tool_probe if calls else ""
        text = "" if CONTENT_MARK in probe.partition(MARK)[0] else MARK
        turn = self._turn(calls, text)
        both = [([*self.asked, turn], False), ([*self.asked, turn, *following], True)]
        if not any(m["role"] == "tool" for m in following):
            # Some templates show the tools again with the last question, and the prompt has shown them.
            with contextlib.suppress(CannotContinue):  # others need tools
                alone, whole = render_alike(self.tokenizer, both, (), self.template_kwargs)
                return alone, whole
        alone, whole = render_alike(self.tokenizer, both, self.tools, self.template_kwargs)
        return alone, whole

    def render(self, messages: Messages, goes_on: bool) -> str:
        """Renders a conversation with the tools."""
        return render_alike(self.tokenizer, [(messages, goes_on)], self.tools, self.template_kwargs)[0]

    def _endings(self, ending: str) -> list[str]:
        return [text for text in {ending, *map(self._text_of, self.eos_ids)} if text]

    def _text_of(self, token: int) -> str:
        return self.tokenizer.convert_ids_to_tokens(int(token))

    @cached_property
    def _added(self) -> list[str]:
        """The tokenizer's tokens that are found in any text, special or not."""
        return [token for token in self.tokenizer.get_added_vocab() if token.strip()]

    @cached_property
    def _special(self) -> list[str]:
        """The special tokens among `_added`: a turn is closed by one of them."""
        special = set(self.tokenizer.all_special_tokens)
        decoder = getattr(self.tokenizer, "added_tokens_decoder", {})
        return [
            t for t in self._added if t in special or any(t == str(a) and a.special for a in decoder.values())
        ]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Finds any of these tokens in a text."""
        longest_first = sorted(self._added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    # ------------------------------------------------------------------- tokens

    def _cut_at_tokens_in_content(
        self, ending: str, calls: Sequence[dict[str, Any]], following: Messages, text: str
    ) -> list[str]:
        """Cuts the text inside each token that a message's content spells out, so that it stays plain text there.

        Only the template may write tokens such as `<|im_end|>`.
        """
        if not any(self._pattern.search(text_of(m.get("content"))) for m in following):
            return [text]
        others = marked(following)
        marks = [m["content"] for m in others]
        frame = self._between(ending, calls, others)
        if any(frame.count(mark) != 1 for mark in marks):
            raise CannotContinue("its chat template does not write the content of these messages once")
        contents = []
        for i, mark in enumerate(marks):
            before, _, after = frame.partition(mark)
            own = self._between(ending, calls, [*others[:i], following[i], *others[i + 1 :]])
            contents.append(own[len(before) : len(own) - len(after)])
        pieces, rest = [""], frame
        for mark, content in zip(marks, contents, strict=True):
            before, _, rest = rest.partition(mark)
            first, *others = _inside_tokens(content, self._pattern)
            pieces[-1] += before + first
            pieces += others
        pieces[-1] += rest
        return pieces

    def _encode(self, ending: str, pieces: list[str], end: int | None) -> list[int]:
        """Encodes each piece as it would be encoded behind what comes before it."""
        found: list[int] = []
        for number, piece in enumerate(pieces):
            before = ending if number == 0 else ANCHOR
            ids = list(self.tokenizer(before + piece, add_special_tokens=False, verbose=False)["input_ids"])
            if number == 0 and end is not None:
                if not ids or ids[0] != end:
                    raise CannotContinue(f"its tokenizer does not read {ending!r} as one token")
                found += ids[1:]
            else:
                cut = list(self.tokenizer(before, add_special_tokens=False, verbose=False)["input_ids"])
                found += ids[len(cut) :] if ids[: len(cut)] == cut else self._plain(piece)
        return found

    def _plain(self, piece: str) -> list[int]:
        return list(self.tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])


def _last(text: str, begins: int, endings: Sequence[str]) -> tuple[int, int]:
    """Returns where the last of these endings begins in a text from `begins` on, and its length; (−1, 0) without one."""
    places = [(text.rfind(ending, begins), len(ending)) for ending in endings]
    return max(places, default=(-1, 0)) if any(place >= 0 for place, _ in places) else (-1, 0)


def _inside_tokens(content: str, pattern: re.Pattern[str]) -> list[str]:
    """Cuts a content behind the first character of each token that it spells out.

    Example:
        >>> _inside_tokens("a <end> b", re.compile("<end>"))
        ['a <', 'end> b']
    """
    pieces, start, place = [], 0, 0
    while (found := pattern.search(content, place)) is not None:
        place = found.start() + 1  # another token may begin inside this one
        if len(found.group()) > 1:
            pieces.append(content[start:place])
            start = place
    return [*pieces, content[start:]]
