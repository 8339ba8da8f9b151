"""Rows → prompts: how texts and chats are tokenized, what is too long, and the order in which they are drawn."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from grpokit.common.console import counting_if_slow
from grpokit.data import tokenizing
from grpokit.data.prompts import Prompts
from grpokit.data.rows import DatasetRow, read_rows
from helpers.chats import CHAT, PLAIN, REFUSING, TEMPLATE, assistant, bpe, characters, rows_of, text_of, user
from helpers.refusals import refuses

# --------------------------------------------------------------------------- tokenizing


def test_a_text_is_tokenized_as_it_stands_even_with_a_template():
    (prompt,) = Prompts(rows_of("2 + 2 ="), CHAT).in_order()
    assert text_of(prompt, CHAT) == "2 + 2 ="
    assert prompt.content == "2 + 2 ="
    assert all(type(token) is int for token in prompt.ids)


def test_special_tokens_are_the_tokenizers():
    """<bos> before a text; none before a chat, whose template adds what it wants."""
    tokenizer = bpe(TEMPLATE)
    chat = DatasetRow([user("sort")], {}, "t.jsonl:2", "messages")
    text, chat = Prompts([*rows_of("sort the digits"), chat], tokenizer).in_order()
    assert text.ids == tuple(tokenizer("sort the digits")["input_ids"])
    assert text.ids[0] == tokenizer.bos_token_id
    assert text_of(chat, tokenizer) == "<user>sort\n<assistant>"


def around(before: str, behind: str):
    """A tokenizer that puts <bos> before a text, or <eos> behind it, or both."""
    tokenizer = bpe(TEMPLATE)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (before, behind) if token]
    single = f"{before} $A {behind}".strip()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=ids
    )
    return tokenizer


@pytest.mark.parametrize("before", ["", "<bos>"])
@pytest.mark.parametrize("behind", ["", "<eos>"])
@pytest.mark.parametrize(
    "text", ["sort the digits", "<bos>sort the digits", "sort<eos>", "<bos>", "sort <bos>"]
)
def test_a_text_begins_with_one_bos_and_ends_as_it_ends(before, behind, text):
    """A rendered chat brings its own <bos>. What the tokenizer would put behind the text is not the prompt's."""
    tokenizer = around(before, behind)
    (prompt,) = Prompts(rows_of(text), tokenizer).in_order()
    assert text_of(prompt, tokenizer) == (text if text.startswith("<bos>") else before + text)


def test_rows_in_batches_have_the_tokens_of_one_by_one(monkeypatch):
    """Texts, chats, prefills and bad rows, over the edges of batches, in the rows' order."""
    monkeypatch.setattr(tokenizing, "BATCH", 7)
    tokenizer = bpe(REFUSING)
    rows = [
        DatasetRow(
            [
                f"sort {n} digits",
                [user(f"sort {n}")],
                [user("sort"), assistant(f"{n}")],
                f"<bos>{n}",
                [{"role": "system", "content": "s"}, user(f"{n}")],
            ][n % 5],
            {"n": n},
            f"t.jsonl:{n}",
            "prompt",
        )
        for n in range(40)
    ]
    found = list(tokenizing.tokenize_all(rows, tokenizer))
    for row, got in zip(rows, found, strict=True):
        if isinstance(got, ValueError):
            refuses(lambda row=row: tokenizing.tokenize(row, tokenizer), str(got))
        else:
            want = tokenizing.tokenize(row, tokenizer)
            assert (got.ids, got.content, got.source) == (want.ids, want.content, want.source)
    assert sum(isinstance(got, ValueError) for got in found) == 8


def test_slow_work_is_counted_with_the_time_left(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr("grpokit.common.console.time.monotonic", lambda: float(next(clock)))
    with counting_if_slow("tokenizing", 400) as progress:
        for done in range(1, 401):
            progress(done)
    assert capsys.readouterr().out.splitlines() == ["tokenizing: 200 of 400, 0:04 left"]


def test_quick_work_is_silent(capsys):
    Prompts(rows_of(*["a"] * 3000), PLAIN)
    assert capsys.readouterr().out == ""


def test_a_chat_goes_through_the_template():
    messages = [{"role": "system", "content": "be brief"}, user("hi")]
    (prompt,) = Prompts([DatasetRow(messages, {}, "t.jsonl:1", "messages")], CHAT).in_order()
    assert text_of(prompt, CHAT) == "<system>be brief\n<user>hi\n<assistant>"
    assert prompt.content == messages
    assert all(type(token) is int for token in prompt.ids)


def test_a_prefill_is_left_open():
    messages = [user("hi"), assistant("<think>")]
    (prompt,) = Prompts([DatasetRow(messages, {}, "t.jsonl:1", "prompt")], CHAT).in_order()
    assert text_of(prompt, CHAT) == "<user>hi\n<assistant><think>"


def test_a_question_is_a_chat_only_with_a_template():
    row = DatasetRow("hi", {}, "t.jsonl:1", "question", asks=True)
    (chat,) = Prompts([row], CHAT).in_order()
    (text,) = Prompts([row], PLAIN).in_order()
    assert (text_of(chat, CHAT), chat.content) == ("<user>hi\n<assistant>", [user("hi")])
    assert (text_of(text, PLAIN), text.content) == ("hi", "hi")


def test_a_tokenizer_of_its_own_length_neither_cuts_nor_warns(caplog):
    short = characters(TEMPLATE, model_max_length=3)
    short.backend_tokenizer.enable_truncation(max_length=3)
    rows = [*rows_of("a" * 20), DatasetRow([user("a" * 20)], {}, "t.jsonl:2", "messages")]
    with caplog.at_level(logging.WARNING, logger="transformers"):
        text, chat = Prompts(rows, short).in_order()
    assert (len(text.ids), len(chat.ids)) == (20, 6 + 20 + 1 + 11)
    assert caplog.records == []


def test_every_prompt_has_every_column():
    rows = [
        DatasetRow("a", {"x": 1}, "t.jsonl:1", "prompt"),
        DatasetRow("b", {"y": 2}, "t.jsonl:2", "prompt"),
    ]
    prompts = Prompts(rows, PLAIN)
    assert prompts.columns == {"x", "y"}
    assert [prompt.columns for prompt in prompts.in_order()] == [{"x": 1, "y": None}, {"x": None, "y": 2}]


def test_a_chat_without_a_template_names_the_row_the_tokenizer_and_the_mend():
    tokenizer = characters(name_or_path="models/base")
    row = DatasetRow([user("a")], {}, "t.jsonl:7", "messages")
    refuses(
        lambda: Prompts([*rows_of("a"), row], tokenizer, skip_bad_rows=True),
        "t.jsonl:7: `messages` is a chat, and the tokenizer of models/base has no chat template",
        "instruct model",
        "chat_template.jinja",
    )
    refuses(lambda: Prompts([row], characters()), "the tokenizer of --model has no chat template")


REFUSED = DatasetRow([{"role": "system", "content": "s"}, user("a")], {}, "t.jsonl:8", "messages")
TOKENLESS = DatasetRow("", {}, "t.jsonl:9", "prompt")


def test_a_refusing_template_names_the_row():
    refuses(
        lambda: Prompts([REFUSED], characters(REFUSING)),
        "t.jsonl:8: the chat template refuses these messages (system, user): no system turn, please",
    )


def test_a_prompt_without_tokens_names_the_row():
    refuses(lambda: Prompts([*rows_of("a"), TOKENLESS], PLAIN), "t.jsonl:9: the tokenizer makes no token")


def test_skip_bad_rows_counts_what_the_tokenizer_refuses_too():
    prompts = Prompts(
        [REFUSED, *rows_of("a"), TOKENLESS],
        characters(REFUSING),
        skip_bad_rows=True,
        skipped_rows=["t.jsonl:3: bad"],
    )
    assert (len(prompts), prompts.skipped) == (1, 3)
    assert [message[:10] for message in prompts.skipped_rows] == ["t.jsonl:3:", "t.jsonl:8:", "t.jsonl:9:"]


def test_no_prompt_left_names_the_flag():
    refuses(
        lambda: Prompts([TOKENLESS], PLAIN, skip_bad_rows=True, flag="--eval_dataset"),
        "--eval_dataset: no prompt is left: 1 malformed",
        "t.jsonl:9",
    )
    refuses(
        lambda: Prompts(rows_of("aaa", "bbbb"), PLAIN, max_prompt_length=2, long_prompts="drop"),
        "--dataset: no prompt is left: 0 malformed",
        "2 over --max_prompt_length 2",
        "--long_prompts drop",
    )


# --------------------------------------------------------------------------- long prompts

LONG = rows_of("abc", "abcdef", "abcd", "abcdefgh", answer="x")


def test_a_long_prompt_is_an_error_with_its_mends():
    refuses(
        lambda: Prompts(LONG, PLAIN, max_prompt_length=4),
        "t.jsonl:2: the prompt has 6 tokens, over --max_prompt_length 4",
        "(2 of 4 prompts are, the longest has 8)",
        "raise --max_prompt_length",
        "--long_prompts error",
        "truncate_left",
        "drop",
    )


def test_a_long_prompt_is_cut_from_the_left():
    prompts = Prompts(LONG, PLAIN, max_prompt_length=4, long_prompts="truncate_left")
    assert [text_of(prompt, PLAIN) for prompt in prompts.in_order()] == ["abc", "cdef", "abcd", "efgh"]
    assert [prompt.content for prompt in prompts.in_order()] == ["abc", "abcdef", "abcd", "abcdefgh"]
    assert (prompts.truncated, prompts.dropped, prompts.skipped) == (2, 0, 0)


def test_a_long_prompt_is_dropped_and_counted():
    prompts = Prompts(LONG, PLAIN, max_prompt_length=4, long_prompts="drop")
    assert [text_of(prompt, PLAIN) for prompt in prompts.in_order()] == ["abc", "abcd"]
    assert (prompts.truncated, prompts.dropped, prompts.skipped, len(prompts)) == (0, 2, 0, 2)
    assert prompts.columns == {"answer"}


@pytest.mark.parametrize("policy", ["error", "truncate_left", "drop"])
def test_prompts_of_the_limit_or_without_one_are_left_alone(policy):
    for limit in (8, None):
        prompts = Prompts(LONG, PLAIN, max_prompt_length=limit, long_prompts=policy)
        assert [len(prompt.ids) for prompt in prompts.in_order()] == [3, 6, 4, 8]
        assert (prompts.truncated, prompts.dropped) == (0, 0)


# --------------------------------------------------------------------------- the order

TEN = rows_of(*"abcdefghij")


def sources(prompts: list) -> list[str]:
    return [prompt.source for prompt in prompts]


def test_every_row_comes_once_per_epoch_and_epochs_differ():
    prompts = Prompts(TEN, PLAIN, seed=1)
    epochs = [sources(prompts.take(10 * epoch, 10)) for epoch in range(4)]
    assert all(sorted(epoch) == sorted(sources(prompts.in_order())) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert sources(prompts.in_order()) not in epochs


@given(positions=st.lists(st.integers(0, 10_000), max_size=20), seed=st.integers(-(2**70), 2**70))
def test_a_position_does_not_know_how_it_was_reached(positions, seed):
    """Resuming is `at(position)` on a new object: it gives what a run that went all the way saw."""
    prompts = Prompts(TEN, PLAIN, seed=seed)
    seen = {position: prompts.at(position) for position in positions}
    for position in reversed(positions):
        again = Prompts(TEN, PLAIN, seed=seed).at(position)
        assert (again.source, again.position) == (seen[position].source, position)


def test_take_is_at_over_the_ends_of_epochs():
    prompts = Prompts(TEN, PLAIN, seed=3)
    taken = prompts.take(7, 25)
    assert [prompt.position for prompt in taken] == list(range(7, 32))
    assert sources(taken) == [prompts.at(position).source for position in range(7, 32)]
    assert Counter(sources(prompts.take(0, 30))) == dict.fromkeys(sources(prompts.in_order()), 3)


def test_the_seed_makes_the_order():
    orders = {seed: tuple(sources(Prompts(TEN, PLAIN, seed=seed).take(0, 10))) for seed in (0, 1, 2, -1)}
    assert len(set(orders.values())) == 4
    assert tuple(sources(Prompts(TEN, PLAIN, seed=1).take(0, 10))) == orders[1]


def test_the_order_is_the_same_for_ever():
    """From the first run of this test: a checkpoint's position means the same rows in any later version."""
    prompts = Prompts(TEN, PLAIN, seed=42)
    assert "".join(str(prompt.content) for prompt in prompts.take(0, 20)) == "hbgedfjaciejfdachbgi"


def test_one_row_is_an_endless_order_too():
    prompts = Prompts(rows_of("a"), PLAIN)
    assert [(prompt.source, prompt.position) for prompt in prompts.take(3, 2)] == [
        ("t.jsonl:1", 3),
        ("t.jsonl:1", 4),
    ]


def test_in_order_is_the_files_order():
    prompts = Prompts(TEN, PLAIN)
    assert [str(prompt.content) for prompt in prompts.in_order(3)] == ["a", "b", "c"]
    assert [prompt.position for prompt in prompts.in_order(3)] == [0, 1, 2]
    assert (
        len(prompts.in_order()) == len(prompts.in_order(0)) == len(prompts.in_order(99)) == len(prompts) == 10
    )


def test_rows_of_a_file_become_prompts(write):
    path = write({"question": "2 + 2 =", "answer": "4"}, {"messages": [user("hi"), assistant("ho")]}, "bad")
    rows, skipped = read_rows(path, skip_bad_rows=True)
    prompts = Prompts(rows, CHAT, skipped_rows=skipped)
    first, second = prompts.in_order()
    assert text_of(first, CHAT) == "<user>2 + 2 =\n<assistant>"
    assert text_of(second, CHAT) == "<user>hi\n<assistant>"
    assert (first.columns, second.columns) == (
        {"answer": "4", "solution": None},
        {"answer": None, "solution": "ho"},
    )
    assert (second.source, prompts.skipped) == (f"{path}:2", 1)


def test_a_prompt_that_is_edited_comes_back_whole():
    row = DatasetRow([user("a")], {"info": {"k": [1]}}, "t.jsonl:1", "prompt")
    prompts = Prompts([row], CHAT)
    edited = prompts.at(0)
    edited.content.append(assistant("b"))
    edited.columns["info"]["k"].append(2)
    again = prompts.at(1)
    assert (again.content, again.columns) == ([user("a")], {"info": {"k": [1]}})
