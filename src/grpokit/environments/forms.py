"""The forms in which models write calls of tools, and their thinking before them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..common.text import one_line

Schemas = Mapping[str, Mapping[str, Any]]  # by the tool's name: the schema of each argument
Reader = Callable[[str, Schemas], Iterator[Any]]

# What begins and ends thinking.
THINKING = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)
CHANNEL = ("<|channel|>analysis<|message|>", "<|end|>")
# What stands between thinking and text in a turn that names its channels.
HEADER = re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>(?:final|commentary)<\|message\|>")


def common_forms(text: str, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, str, list[Any]]:
    """Finds calls in the forms that most models write.

    Args:
        text: what the model wrote, with special tokens.
        tools: the JSON schemas of the tools; they say which arguments are text, where a form doesn't.

    Returns:
        The text before the calls, the thinking, and the calls as they were written.

    Example:
        >>> common_forms('Add. <tool_call>{"name": "add", "arguments": {"a": 3}}</tool_call>')
        ('Add.', '', [{'name': 'add', 'arguments': {'a': 3}}])
    """
    before, said = split_thinking(text)
    thinking = _without_marks(before)
    found = _first_sign(said)
    if found is None:
        return said, thinking, []
    place, read = found
    return said[:place].strip(), thinking, list(read(said[place:], _schemas(tools)))


def before_calls(text: str) -> str:
    """Returns what a turn has before its calls, thinking included."""
    said = split_thinking(text)[1]
    found = _first_sign(said)
    place = found[0] if found is not None else said.find("{")
    return (text[: len(text) - len(said)] + (said[:place] if place >= 0 else said)).rstrip()


def split_thinking(text: str) -> tuple[str, str]:
    """Parts a turn into its thinking and the rest. Calls that it only thinks about are not made."""
    ends = [text.rfind(close) + len(close) for _, close in THINKING if close in text]
    opening, close = CHANNEL
    if (start := text.rfind(opening)) >= 0 and (end := text.find(close, start)) >= 0:
        ends.append(end + len(close))
    if ends:
        place = max(ends)
    else:
        openings = (*(opening for opening, _ in THINKING), opening)
        place = len(text) if text.lstrip().startswith(openings) else 0
    before, after = text[:place], text[place:].lstrip("\n")
    return before, HEADER.sub("", after, count=1) if HEADER.match(after) else after


def _without_marks(thinking: str) -> str:
    for opening, close in (*THINKING, CHANNEL):
        thinking = thinking.removeprefix(opening).removesuffix(close)
    return thinking.strip()


def _first_sign(said: str) -> tuple[int, Reader] | None:
    """Returns where the calls of a text begin, and what reads them; None without calls."""
    for sign, read in FORMS:
        if (found := sign.search(said)) is not None:
            return found.start(), read
    return None


def argument_schemas(tool: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Returns the schema of each argument of a tool.

    Example:
        >>> argument_schemas({"function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}}})
        {'a': {'type': 'integer'}}
    """
    parameters = tool.get("function", tool).get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    # A schema may be true, which takes anything.
    return {key: each if isinstance(each, Mapping) else {} for key, each in properties.items()}


def _schemas(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    return {tool.get("function", tool).get("name", ""): argument_schemas(tool) for tool in tools}


# --------------------------------------------------------------------------- JSON


@dataclass(frozen=True)
class Unreadable:
    """Stands for a call that can't be read. Example: `Unreadable("Expecting value")`"""

    why: str
    language: str = "JSON"


def read_json(text: str) -> Any:
    """Reads JSON. Example: `read_json("3")` is 3, and `read_json("{")` an `Unreadable`."""
    try:
        return json.loads(text.strip())
    except (ValueError, RecursionError) as error:
        return Unreadable(one_line(error, 100))


def _objects(text: str) -> Iterator[Any]:
    """The JSON values that follow each other, with semicolons or spaces between them. Lists are taken apart."""
    decoder, place = json.JSONDecoder(), 0
    while place < len(text):
        try:
            found, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            yield Unreadable(one_line(error, 100))
            return
        yield from found if isinstance(found, list) else [found]
        while place < len(text) and text[place] in "; \n\t\r":
            place += 1


def _bare(said: str, _tools: Schemas) -> Iterator[Any]:
    """Llama's: the objects alone."""
    yield from _objects(said.removeprefix("<|python_tag|>").strip())


def _wrapped(said: str, _tools: Schemas) -> Iterator[Any]:
    """JSON between two marks."""
    for match in WRAPPED.finditer(said):
        for written in _objects(match["body"].strip()):
            call = written
            if isinstance(call, dict) and "tool_name" in call:  # Cohere's
                call = {"name": call["tool_name"], "arguments": call.get("parameters", {})}
            elif isinstance(call, dict) and len(call) == 1 and "name" not in call:  # Apertus'
                ((name, arguments),) = call.items()
                call = {"name": name, "arguments": arguments}
            yield call


# Opening mark → closing mark. The end of the turn may take the closing mark's place.
MARKS = {
    "<tool_calls>": "</tool_calls>",
    "<TOOLCALL>": "</TOOLCALL>",
    "<|START_ACTION|>": "<|END_ACTION|>",
    "<|tools_prefix|>": "<|tools_suffix|>",
    "<|tool_call|>": "<|/tool_call|>",
    "<|function_call|>": "",
    "function call<|role_sep|>": "",
}
WRAPPED = re.compile(
    "(?:" + "|".join(map(re.escape, MARKS)) + ")(?P<body>.*?)"
    "(?:" + "|".join(re.escape(close) for close in MARKS.values() if close) + r"|\Z)",
    re.DOTALL,
)


def _mistral(said: str, _tools: Schemas) -> Iterator[Any]:
    """`[{...}, {...}]`, or `name[ARGS]{...}` for each call."""
    _, *parts = said.split("[TOOL_CALLS]")
    if "[ARGS]" in said:
        for part in parts:
            name, _, arguments = part.partition("[ARGS]")
            name, _, written = name.partition("[CALL_ID]")
            yield {"name": name.strip(), "arguments": read_json(arguments), "id": written.strip()}
        return
    found = read_json("[TOOL_CALLS]".join(parts))
    yield from found if isinstance(found, list) else [found]


# --------------------------------------------------------------------------- a name, and JSON

NAMED = re.compile(
    "|".join(
        (
            # DeepSeek, the older form and the newer
            r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name_1>[^\n]*)\n```json\n(?P<json_1>.*?)\n```",
            r"<｜tool▁call▁begin｜>(?P<name_2>[^<]*)<｜tool▁sep｜>(?P<json_2>.*?)(?:<｜tool▁call▁end｜>|\Z)",
            # Kimi: functions.add:0, which is the call's id
            r"<\|tool_call_begin\|>\s*(?P<id_3>(?:functions\.)?(?P<name_3>[^\s<:]+)(?::\d+)?)\s*"
            r"<\|tool_call_argument_begin\|>(?P<json_3>.*?)(?:<\|tool_call_end\|>|\Z)",
            # gpt-oss
            r"to=functions\.(?P<name_4>[^\s<]+)(?:(?!<\|message\|>).)*<\|message\|>"
            r"(?P<json_4>.*?)(?:<\|(?:call|end)\|>|\Z)",
            # Solar
            r"<\|tool_call:begin\|>(?P<id_5>[^<]*)<\|tool_call:name\|>(?P<name_5>[^<]*)<\|tool_call:args\|>"
            r"(?P<json_5>.*?)(?:<\|tool_call:end\|>|\Z)",
        )
    ),
    re.DOTALL,
)


def _named(said: str, _tools: Schemas) -> Iterator[Any]:
    """A name, a mark and JSON."""
    for match in NAMED.finditer(said):
        given = {key[:-2]: value for key, value in match.groupdict().items() if value is not None}
        name, arguments = given["name"].strip(), read_json(given["json"] or "{}")
        yield {"name": name, "arguments": arguments, "id": given.get("id", "")}


# --------------------------------------------------------------------------- tags

TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
FUNCTION = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
# `<invoke name="add"><parameter name="a">3</parameter></invoke>`, with a prefix before each tag's name
INVOKE = re.compile(
    r'<(?P<prefix>[^\s<>/"]*?)(?P<tag>invoke|function) name="(?P<name>[^"]*)">(?P<body>.*?)(?:</(?P=prefix)(?P=tag)>|\Z)',
    re.DOTALL,
)
NAMED_PARAMETER = re.compile(
    r'<(?P<tag>[^\s<>/"]*?param(?:eter)?) name="(?P<key>[^"]*)"(?: string="(?P<string>\w+)")?[^>]*>'
    r"(?P<value>.*?)</(?P=tag)>",
    re.DOTALL,
)


def _tagged(said: str, tools: Schemas) -> Iterator[Any]:
    """`<tool_call>`, with JSON, with tags, or with a name and tags inside."""
    for body in TOOL_CALL.findall(said):
        name = re.match(r"\s*([^\s<{\[]+)\s*(?=<arg_key>|\{|\Z)", body)
        if "<function=" in body:
            yield from _functions(body, tools)
        elif name is None:
            yield read_json(body)
        elif body[name.end() :].startswith("{"):
            yield {"name": name[1], "arguments": read_json(body[name.end() :])}
        else:  # GLM's
            yield _typed(name[1], ARGUMENT.findall(body), tools)


def _functions(said: str, tools: Schemas) -> Iterator[Any]:
    """`<function=add>`, with JSON or with a tag for each argument."""
    for name, body in FUNCTION.findall(said):
        if body.strip().startswith("{"):
            yield {"name": name.strip(), "arguments": read_json(body)}
        else:
            yield _typed(name.strip(), PARAMETER.findall(body), tools)


def _invoked(said: str, tools: Schemas) -> Iterator[Any]:
    """`<invoke name="add">`, with a tag for each argument."""
    for match in INVOKE.finditer(said):
        name, given = match["name"], {}
        for each in NAMED_PARAMETER.finditer(match["body"]):
            as_text = each["string"] == "true"
            schema = {"type": "string"} if as_text else tools.get(name, {}).get(each["key"], {})
            given[each["key"]] = _value(each["value"], schema)
        yield {"name": name, "arguments": given}


def _typed(name: str, given: Sequence[tuple[str, str]], tools: Schemas) -> dict[str, Any]:
    own = tools.get(name, {})
    return {"name": name, "arguments": {key: _value(text, own.get(key, {})) for key, text in given}}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """Parses an argument that is written as plain text: as JSON, unless its schema says string or it is no valid JSON."""
    options = [schema, *schema.get("anyOf", ())]
    types = [each.get("type") for each in options]
    kinds = [kind for each in types for kind in (each if isinstance(each, list) else [each])]
    may_be_none = "null" in kinds or any(each.get("nullable") for each in options)
    if "string" in kinds and not (may_be_none and text in ("null", "None")):
        return text
    words = {"True": True, "False": False, "None": None}
    if text.strip() in words:
        return words[text.strip()]
    found = read_json(text)
    return text if isinstance(found, Unreadable) else found


# --------------------------------------------------------------------------- like code

PYTHON = re.compile(r"<\|tool_call_start\|>(.*?)(?:<\|tool_call_end\|>|\Z)", re.DOTALL)
GEMMA = re.compile(r"<\|tool_call>call:([^{\s]+)(\{.*?\})(?:<tool_call\|>|\Z)", re.DOTALL)


def _python(said: str, _tools: Schemas) -> Iterator[Any]:
    """LFM2's: `[add(a=3, b=4)]`. Nothing of it is run."""
    for body in PYTHON.findall(said):
        try:
            tree = ast.parse(body.strip(), mode="eval").body
            calls = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
            for call in calls:
                if not isinstance(call, ast.Call) or call.args:
                    raise ValueError("expected name(argument=value)")
                given = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
                yield {"name": ast.unparse(call.func), "arguments": given}
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            yield Unreadable(one_line(error, 100), "Python")


def _gemma(said: str, _tools: Schemas) -> Iterator[Any]:
    """Gemma's: `call:add{a:3,note:<|"|>text<|"|>}`: JSON without quotes around keys, with a token in place of quotes."""
    for name, body in GEMMA.findall(said):
        pieces = body.split('<|"|>')
        plain = [re.sub(r"([{,]\s*)([^\s{}\[\],:\"]+)\s*:", r'\1"\2":', piece) for piece in pieces[::2]]
        quoted = [json.dumps(piece) for piece in pieces[1::2]]
        whole = "".join(a + b for a, b in zip(plain, [*quoted, ""], strict=False))
        yield {"name": name, "arguments": read_json(whole)}


# The pattern that recognises each form, and its reader. Specific patterns come first: one form may contain another.
FORMS: tuple[tuple[re.Pattern[str], Reader], ...] = (
    (re.compile(r"<tool_call>"), _tagged),
    (re.compile(r"\[TOOL_CALLS\]"), _mistral),
    (re.compile(r"(?:<seed:tool_call>\s*)?<function="), _functions),
    (
        re.compile(
            r"(?: ?to=\S+<\|message\|>)?\s*(?:<[^\s<>/]*(?:tool_calls?|function_calls)>\s*)?"
            r"<[^\s<>/\"]*(?:invoke|function) name=\""
        ),
        _invoked,
    ),
    (re.compile(r"<｜tool▁calls▁begin｜>|<｜tool▁call▁begin｜>"), _named),
    (re.compile(r"<\|tool_calls_section_begin\|>|<\|tool_call_begin\|>"), _named),
    (re.compile(r"(?:<\|tool_calls\|>)?<\|tool_call:begin\|>"), _named),
    (re.compile(r"(?:<\|start\|>assistant)?(?:<\|channel\|>\w+)? ?to=functions\."), _named),
    (re.compile(r"<\|tool_call_start\|>"), _python),
    (re.compile(r"<\|tool_call>call:"), _gemma),
    (re.compile("|".join(map(re.escape, MARKS))), _wrapped),
    (
        re.compile(
            r"\A\s*(?:<\|python_tag\|>)?\s*\{(?=.*\"name\")(?=.*\"(?:parameters|arguments)\")", re.DOTALL
        ),
        _bare,
    ),
)
