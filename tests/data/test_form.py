"""Chat templates: a file, arguments, a row's own arguments, and a prefix of every completion."""

from __future__ import annotations

import pytest

from grpokit.data.form import PromptForm, parse_template_kwargs, with_chat_template
from grpokit.data.prompts import Prompts
from grpokit.data.rows import DatasetRow
from grpokit.data.tokenizing import tokenize
from helpers.chats import PLAIN, TEMPLATE, bpe, characters, rows_of, user

THINKING = TEMPLATE + "{% if thinks %}<thinks>{% endif %}{{ style }}"
CHAT = characters(THINKING)


def chat_row(**columns) -> DatasetRow:
    return DatasetRow([user("1+1")], columns, "t.jsonl:4", "prompt")


def text_of(row, form, tokenizer=CHAT) -> str:
    """The prompt's text, the same one by one and among others."""
    alone = tokenize(row, tokenizer, form)
    (among,) = Prompts([row], tokenizer, form=form).in_order()
    assert alone.ids == among.ids
    assert alone.prefix == among.prefix == form.prefix
    return tokenizer.decode(alone.ids)


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["thinks=true", "style=short"], {"thinks": True, "style": "short"}),
        (["thinks=False", "n=3", "x=None"], {"thinks": False, "n": 3, "x": None}),
        (['style="3"', "list=[1, 2]", "empty="], {"style": "3", "list": [1, 2], "empty": ""}),
    ],
)
def test_arguments_are_json_or_text(items, expected):
    assert parse_template_kwargs(items) == expected


@pytest.mark.parametrize("item", ["thinks", "=3", "a b=3", "tools=[]", "tokenize=true"])
def test_malformed_arguments_are_named(item):
    with pytest.raises(ValueError, match=f"--chat_template_kwargs {item}".replace("[", r"\[")):
        parse_template_kwargs([item])


def test_a_rows_own_arguments_go_before_the_runs():
    form = PromptForm(template_kwargs={"thinks": True, "style": "x"})
    assert text_of(chat_row(), form).endswith("<assistant><thinks>x")
    assert text_of(chat_row(chat_template_kwargs={"style": "y", "thinks": None}), form).endswith("<thinks>y")
    assert text_of(chat_row(chat_template_kwargs='{"thinks": false}'), form).endswith("<assistant>x")
    for wrong in ("not json", [1], {"tools": []}):
        with pytest.raises(ValueError, match=r"t\.jsonl:4: `chat_template_kwargs` is"):
            tokenize(chat_row(chat_template_kwargs=wrong), CHAT, form)


def test_a_prefix_ends_every_prompt_and_is_tokenized_with_it():
    form = PromptForm(prefix="ok= ")
    assert text_of(chat_row(), form).endswith("<assistant>ok= ")
    assert text_of(rows_of("2+2")[0], form, PLAIN) == "2+2ok= "
    joined = bpe()
    (row,) = rows_of("sort the d")
    want = joined("sort the digits", add_special_tokens=False)["input_ids"]
    assert tokenize(row, joined, PromptForm(prefix="igits")).ids[1:] == tuple(want)


def test_arguments_without_a_chat_are_refused():
    with pytest.raises(
        ValueError, match="--chat_template_kwargs thinks=true: no prompt of --dataset is a chat"
    ):
        Prompts(rows_of("2+2"), PLAIN, form=PromptForm(template_kwargs={"thinks": True}))


def test_a_template_from_a_file_leaves_the_given_tokenizer_alone(tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}?")
    mine = with_chat_template(CHAT, str(file))
    assert mine.decode(tokenize(chat_row(), mine).ids) == "1+1?"
    assert CHAT.chat_template == THINKING
    with pytest.raises(ValueError, match=r"--chat_template .*none\.jinja: cannot be read"):
        with_chat_template(CHAT, str(tmp_path / "none.jinja"))
