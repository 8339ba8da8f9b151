"""Rows of a file: which are read, which are refused, and how that is said."""

from __future__ import annotations

import gzip
import json

import pytest

from grpokit.config.options import TrainConfig
from grpokit.data.rows import parse_row, read_rows
from grpokit.training.setup.prompts import load_prompts
from helpers.chats import PLAIN, assistant, user
from helpers.refusals import refuses
from helpers.tiny import write_rows


def test_a_text_row_with_its_columns(write):
    path = write({"prompt": "2 + 2 =", "answer": 4, "level": None})
    (row,), skipped = read_rows(path)
    assert (row.content, row.columns, row.source) == ("2 + 2 =", {"answer": 4, "level": None}, f"{path}:1")
    assert skipped == []


def test_the_first_statement_is_the_prompt_and_the_others_are_columns(write):
    path = write(
        {"question": "q", "messages": [user("m")], "prompt": "p"}, {"question": "q", "messages": [user("m")]}
    )
    first, second = read_rows(path)[0]
    assert (first.content, first.columns) == ("p", {"question": "q", "messages": [user("m")]})
    assert (second.content, second.columns) == ([user("m")], {"question": "q"})


def test_a_null_statement_is_no_statement_and_no_column(write):
    (row,), _ = read_rows(write({"prompt": None, "messages": None, "question": "q"}))
    assert (row.content, row.columns) == ("q", {})


def test_blank_lines_are_ignored_and_counted_as_lines(write):
    path = write("", {"prompt": "a"}, "  \t", {"prompt": "b"})
    assert [row.source for row in read_rows(path)[0]] == [f"{path}:2", f"{path}:4"]


def test_windows_files_are_read(write):
    path = write(b'\xef\xbb\xbf{"prompt": "a"}\r', '{"prompt": "b"}\r')
    assert [row.content for row in read_rows(path)[0]] == ["a", "b"]


def test_a_line_ends_at_a_newline_alone(write):
    path = write('{"prompt": "a\u2028b"}', {"prompt": "c"})
    assert [(row.content, row.source) for row in read_rows(path)[0]] == [
        ("a\u2028b", f"{path}:1"),
        ("c", f"{path}:2"),
    ]


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.json.gz", "data.jsonl"])
def test_gzip_is_known_by_its_contents(write, name):
    path = write({"prompt": "a"}, {"prompt": "b"}, name=name, pack=True)
    assert [row.source for row in read_rows(path)[0]] == [f"{path}:1", f"{path}:2"]


def test_messages_that_end_with_the_answer_give_a_solution(write):
    rows, _ = read_rows(
        write(
            {"messages": [user("q"), assistant("a")]},
            {"messages": [user("q"), assistant("a")], "solution": "kept"},
            {"messages": [user("q"), assistant("a")], "solution": None},
            {"messages": [user("q")]},
            {"messages": [user("q"), assistant("a"), user("r")]},
        )
    )
    assert [row.columns for row in rows] == [
        {"solution": "a"},
        {"solution": "kept"},
        {"solution": "a"},
        {},
        {},
    ]
    assert [row.content for row in rows[:4]] == [[user("q")]] * 4
    assert len(rows[4].content) == 3


def test_a_prompt_of_messages_keeps_its_last_turn(write):
    (row,), _ = read_rows(write({"prompt": [user("q"), assistant("a")]}))
    assert (row.content, row.columns) == ([user("q"), assistant("a")], {})


def test_a_surrogate_pair_is_text(write):
    (row,), _ = read_rows(write('{"prompt": "\\ud83d\\ude00"}'))
    assert row.content == "😀"


EXPECTED_OBJECT = "expected an object with a column `prompt`, `messages` or `question`"


BAD_ROWS = {
    "not JSON": ("{'prompt': 'a'}", "not JSON", "character 2", "one JSON object per line"),
    "cut off": ('{"prompt": "a', "not JSON", "character 12"),
    "a list": ('[{"prompt": "a"}]', 'the row is [{"prompt": "a"}]', EXPECTED_OBJECT),
    "a number": ("7", "the row is 7", EXPECTED_OBJECT),
    "null": ("null", "the row is null", EXPECTED_OBJECT),
    "no statement": ({"promt": "a", "answer": 1}, "no prompt", EXPECTED_OBJECT, "'promt', 'answer'"),
    "no column": ({}, "no prompt", EXPECTED_OBJECT, "found none"),
    "all null": ({"prompt": None}, "no prompt", EXPECTED_OBJECT),
    "empty prompt": ({"prompt": ""}, '`prompt` is ""', "expected text, or a list of messages"),
    "blank question": ({"question": " \n"}, "`question` is ", "expected text"),
    "prompt is a number": ({"prompt": 3}, "`prompt` is 3", "expected text, or a list of messages"),
    "prompt is an object": ({"prompt": user("a")}, '`prompt` is {"role"', "expected text"),
    "question is a list": ({"question": [user("a")]}, "`question` is [", "expected text"),
    "messages is text": ({"messages": "a"}, '`messages` is "a"', 'like {"role": "user", "content": "text"}'),
    "no messages": ({"messages": []}, "`messages` has no text in it: []", "expected a list of messages"),
    "empty messages": ({"messages": [user("")]}, "`messages` has no text in it", '"content": ""'),
    "a message is text": (
        {"messages": [user("a"), "b"]},
        'message 2 of `messages` is "b"',
        "expected a list",
    ),
    "no role": (
        {"messages": [{"content": "a"}]},
        'message 1 of `messages` is {"content": "a"}',
        '"role": "user"',
    ),
    "no content": (
        {"prompt": [{"role": "user"}]},
        'message 1 of `prompt` is {"role": "user"}',
        '"content": "text"',
    ),
    "content is a list": (
        {"messages": [{"role": "user", "content": ["a"]}]},
        "message 1 of `messages`",
        '["a"]',
    ),
    "only an answer": ({"messages": [assistant("a")]}, "no turn before the assistant's answer"),
    "two answers": (
        {"messages": [user("q"), assistant("a"), assistant("b")]},
        "no turn before the assistant's",
    ),
    "bad UTF-8": (b'{"prompt": "\xff"}', "not Unicode text", "invalid start byte"),
    "UTF-16": ('{"prompt": "a"}'.encode("utf-16"), "not Unicode text"),
    "half a surrogate pair": ('{"prompt": "\\uD800"}', "not Unicode text", "surrogates not allowed"),
    "half a pair in a column": ('{"prompt": "a", "b": "\\udfff"}', "not Unicode text"),
    "NaN": ('{"prompt": "a", "x": NaN}', "NaN is not a JSON number", "expected a finite one or null"),
    "infinity": ('{"prompt": "a", "x": -Infinity}', "-Infinity is not a JSON number"),
    "beyond float64": ('{"prompt": "a", "x": 1e999}', "1e999 is not a JSON number"),
    "a long integer": ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "4300 digits"),
    "deep": ('{"prompt": ' + "[" * 100_000 + "}", "nested too deeply"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_malformed_row_stops_at_its_line(write, kind):
    line, *parts = BAD_ROWS[kind]
    path = write({"prompt": "fine"}, line, {"prompt": "fine"})
    refuses(lambda: read_rows(path), f"{path}:2: ", *parts, "--skip_bad_rows")


def test_malformed_rows_are_skipped_and_counted(write):
    path = write({"prompt": "a"}, *(line for line, *_ in BAD_ROWS.values()), {"prompt": "z"})
    rows, skipped = read_rows(path, skip_bad_rows=True)
    assert [row.content for row in rows] == ["a", "z"]
    assert len(skipped) == len(BAD_ROWS)
    for number, (message, (_, part, *_)) in enumerate(zip(skipped, BAD_ROWS.values(), strict=True), 2):
        assert message.startswith(f"{path}:{number}: ")
        assert part in message


def test_a_missing_file_names_the_flag(tmp_path):
    path = tmp_path / "no.jsonl"
    refuses(lambda: read_rows(path), f"--dataset {path}: No such file", ".jsonl or .jsonl.gz")
    refuses(lambda: read_rows(path, flag="--eval_dataset"), f"--eval_dataset {path}: No such file")


def test_an_empty_folder_names_the_flag(tmp_path):
    refuses(lambda: read_rows(tmp_path), f"--dataset {tmp_path}: a folder without data", ".parquet", ".jsonl")


@pytest.mark.parametrize("lines", [(), ("", " ")])
def test_an_empty_file_names_the_flag(write, lines):
    path = write(*lines)
    refuses(lambda: read_rows(path), f"--dataset {path}: is empty", "one JSON object per line")


def test_no_valid_row_names_the_flag_and_the_first(write):
    path = write("x", "y")
    refuses(
        lambda: read_rows(path, skip_bad_rows=True),
        f"--dataset {path}: all 2 rows are malformed",
        f"the first: {path}:1: not JSON",
    )


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flipped", "checksum", "trailing"])
def test_a_damaged_gzip_is_refused_whole(write, tmp_path, damage, skip):
    whole = gzip.compress(b'{"prompt": "a"}\n' * 5000)
    half = len(whole) // 2
    data = {
        "cut": whole[:half],
        "flipped": whole[:10] + b"\xff" + whole[11:],  # the first byte after the header: no such block type
        "checksum": whole[:-8] + bytes(4) + whole[-4:],
        "trailing": whole + b"trash",
    }[damage]
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(data)
    refuses(lambda: read_rows(path, skip_bad_rows=skip), f"--dataset {path}: truncated or damaged gzip")


# --------------------------------------------------------------------------- --prompt_column, and chats as JSON

CHAT = [{"role": "user", "content": "hi"}]
WRITTEN = json.dumps(CHAT)


@pytest.mark.parametrize(
    ("values", "column", "content", "columns", "asks"),
    [
        ({"problem": "2+2", "prompt": "p"}, "problem", "2+2", {"prompt": "p"}, True),
        ({"problem": None, "prompt": "p"}, "problem", "p", {}, False),
        ({"prompt": "p"}, "prompt", "p", {}, True),
        ({"problem": CHAT}, "problem", CHAT, {}, False),
        ({"problem": WRITTEN}, "problem", CHAT, {}, False),
        ({"prompt": WRITTEN, "answer": "a"}, "", CHAT, {"answer": "a"}, False),
        ({"question": WRITTEN}, "", WRITTEN, {}, True),
        ({"prompt": "[1, 2]"}, "", "[1, 2]", {}, False),
        ({"prompt": '[{"role": 1'}, "", '[{"role": 1', {}, False),
        (
            {"messages": json.dumps([*CHAT, {"role": "assistant", "content": "ho"}])},
            "",
            CHAT,
            {"solution": "ho"},
            False,
        ),
    ],
)
def test_the_column_that_states_the_prompt(values, column, content, columns, asks):
    row = parse_row(values, "t.jsonl:1", column)
    assert (row.content, row.columns) == (content, columns)
    assert (row.asks and isinstance(row.content, str)) == asks
    assert row.as_json == (isinstance(values[row.statement], str) and not isinstance(content, str))


def test_a_prompt_column_that_no_row_has_is_refused(tmp_path):
    path = str(write_rows(tmp_path / "t.jsonl", [{"prompt": "a", "problem": "b"}]))
    for lazily in ("always", "never"):
        config = TrainConfig(prompt_column="problm", lazy_tokenize=lazily, max_prompt_length=9)
        said = f"--prompt_column problm: no row of {path} has it (did you mean 'problem'?); there are problem, prompt"
        refuses(lambda config=config: load_prompts(config, path, "--dataset", PLAIN, None), said)
