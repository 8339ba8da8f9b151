"""Reads shell text as far as launch scripts need it: commands as lists of words. Runs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)
VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(\[[@*]\])?(?::?-([^}]*))?\})")
ENDS = ("\n", ";", "&", "|")
KEYWORDS = {
    "export",
    "exec",
    "nohup",
    "time",
    "env",
    "then",
    "do",
    "if",
    "else",
    "declare",
    "local",
    "readonly",
}


@dataclass(frozen=True)
class Command:
    """One command. Example: `Command(("trl", "grpo", "--beta", "0.1"), {"NPROC_PER_NODE": "8"})`"""

    words: tuple[str, ...]
    environment: dict[str, str]  # the assignments before it, in the script and on its line
    notes: tuple[str, ...] = ()


@dataclass
class _Word:
    """A word as it was written: pieces of text, each with its kind of quote ('', '"' or "'")."""

    pieces: list[tuple[str, str]] = field(default_factory=list)

    def add(self, text: str, quote: str) -> None:
        if self.pieces and self.pieces[-1][1] == quote:
            self.pieces[-1] = (self.pieces[-1][0] + text, quote)
        else:
            self.pieces.append((text, quote))

    @property
    def raw(self) -> str:
        return "".join(text for text, _ in self.pieces)


def read_commands(text: str) -> Iterator[Command]:
    """Reads the commands of a script, with variables replaced by what the script assigns to them.

    Example:
        >>> [command.words for command in read_commands("M=org/m; trl grpo --model_name_or_path $M  # comment")]
        [('trl', 'grpo', '--model_name_or_path', 'org/m')]
    """
    known: dict[str, list[str]] = {}
    held: Command | None = None
    for line in _lines(text):
        line, own = _assign(line, known)
        words = tuple(w for word in line for w in _expand(word, known))
        if not words:
            known |= own
            continue
        if words[0].startswith("--") and held is not None:
            lost = f"{words[0]}: stands after a comment or a line without `\\`, so the shell never passed it; left out"
            held = Command(held.words, held.environment, (*held.notes, lost))
            continue
        if held is not None:
            yield held
        held = Command(words, {name: " ".join(value) for name, value in (known | own).items()})
    if held is not None:
        yield held


def _assign(line: list[_Word], known: dict[str, list[str]]) -> tuple[list[_Word], dict[str, list[str]]]:
    """Takes the assignments off the front of a line."""
    own: dict[str, list[str]] = {}
    while line:
        raw, quote = line[0].pieces[0] if line[0].pieces else ("", "")
        match = ASSIGNMENT.fullmatch(raw) if not quote else None
        if match is None and raw not in KEYWORDS:
            break
        first, *line = line
        if match is None:
            continue
        name, start = match.groups()
        if start.startswith("("):
            value, line = _array(first, start, line, known)
        else:
            rest = _Word([(start, ""), *first.pieces[1:]])
            value = [" ".join(_expand(_Word([(t, q or '"') for t, q in rest.pieces]), known))]
        own[name] = value
        known.setdefault(name, value)
        if not line:
            known[name] = value
    return line, own


def _array(
    first: _Word, start: str, line: list[_Word], known: dict[str, list[str]]
) -> tuple[list[str], list[_Word]]:
    """Reads `NAME=( words )`."""
    words = [_Word([(start[1:], ""), *first.pieces[1:]]), *line]
    for place, word in enumerate(words):
        if word.pieces and word.pieces[-1] == (word.pieces[-1][0], "") and word.pieces[-1][0].endswith(")"):
            text, quote = word.pieces.pop()
            word.add(text[:-1], quote)
            return [w for inside in words[: place + 1] for w in _expand(inside, known)], words[place + 1 :]
    return [], []


def _expand(word: _Word, known: dict[str, list[str]]) -> list[str]:
    """Replaces variables. Without quotes a value becomes several words, as in a shell; an unknown one stays."""
    if len(word.pieces) == 1 and word.pieces[0][1] != "'":
        match = VARIABLE.fullmatch(word.pieces[0][0])
        value = None if match is None else known.get(match[1] or match[2])
        if match is not None and value is not None:
            if match[3]:
                return value
            return value if word.pieces[0][1] else [w for part in value for w in part.split()]
        if word.pieces[0][0] in ("$@", "${@}", "$*"):
            return []

    def replaced(match: re.Match[str]) -> str:
        value = known.get(match[1] or match[2])
        return " ".join(value) if value is not None else match[4] if match[4] is not None else match[0]

    texts = [text if quote == "'" else VARIABLE.sub(replaced, text) for text, quote in word.pieces]
    whole = "".join(texts)
    return [whole] if whole or any(quote for _, quote in word.pieces) else []


def _lines(text: str) -> Iterator[list[_Word]]:
    """Splits text into commands of words, at newlines and operators, without comments and redirections."""
    line: list[_Word] = []
    word: _Word | None = None
    place, depth = 0, 0
    while place <= len(text):
        c = text[place : place + 1]
        if c == "\\":
            if text[place + 1 : place + 2] not in ("\n", "\r"):
                word = word or _Word()
                word.add(text[place + 1 : place + 2], "'")
            place += 3 if text[place + 1 : place + 3] == "\r\n" else 2
            continue
        if c in ("'", '"') and c:
            word = word or _Word()
            place = _quoted(text, place, word)
            continue
        if c == "#" and word is None:
            end = text.find("\n", place)
            place = len(text) if end < 0 else end
            continue
        if c in ("(", ")"):
            depth += 1 if c == "(" else -1
        redirects = c == "&" and (text[place + 1 : place + 2] == ">" or text[max(place - 1, 0)] == ">")
        ends = c in ENDS and not (c == "\n" and depth > 0) and not redirects
        if c == "" or c.isspace() or ends:
            if word is not None:
                line.append(word)
                word = None
            if (c == "" or ends) and line:
                yield _without_redirections(line)
                line = []
            if ends:
                depth = 0
            place += 1
            continue
        word = word or _Word()
        word.add(c, "")
        place += 1


def _quoted(text: str, place: int, word: _Word) -> int:
    """Reads a quoted piece. Returns the place after it."""
    quote, end = text[place], place + 1
    word.add("", quote)
    while end < len(text) and text[end] != quote:
        if quote == '"' and text[end] == "\\" and text[end + 1 : end + 2] in ('"', "\\", "$", "`", "\n"):
            if text[end + 1] != "\n":
                word.add(text[end + 1], quote)
            end += 2
            continue
        word.add(text[end], quote)
        end += 1
    return end + 1


def _without_redirections(line: list[_Word]) -> list[_Word]:
    kept: list[_Word] = []
    skip = False
    for word in line:
        is_plain = all(not quote for _, quote in word.pieces)
        match = re.fullmatch(r"(?:\d|&)?(>>?&?|<)(.*)", word.raw) if is_plain else None
        if skip or match is not None:
            skip = match is not None and not match[2]
            continue
        kept.append(word)
    return kept
