"""What stands between two turns: behind the sampled tokens, as a full rendering would have it."""

from __future__ import annotations

import pytest

from grpokit.environments.continuation import CannotContinue, Continuation
from helpers.chat import APRIEL, NUMBERED, PARTS, STYLES, TOOLS_LAST, chat_tokenizer

USER = {"role": "user", "content": "What is 3 + 4?"}
CALL = {"id": "call00000", "type": "function", "function": {"name": "add", "arguments": {"a": 3, "b": 4}}}
TWO = [CALL, {**CALL, "id": "call00001"}]
TOOL = {"role": "tool", "tool_call_id": "call00000", "name": "add", "content": "7"}
# The token that ends a turn that calls, and one that doesn't.
ENDS = {
    "glm": ("<|observation|>", "<|user|>"),
    "gpt-oss": ("<|call|>", "<|return|>"),
    "gemma-4": ("<|tool_response>", "<turn|>"),
}


def made(style):
    tokenizer = chat_tokenizer(style)
    eos = tokenizer.convert_tokens_to_ids(STYLES[style][3])
    return tokenizer, Continuation(tokenizer, frozenset(eos))


def end_of(style, tokenizer, calls):
    names = ENDS.get(style, (STYLES[style][3][0],) * 2)
    return tokenizer.convert_tokens_to_ids(names[0 if calls else 1])


def sampled(style, tokenizer, calls, end):
    """The ids of a turn as the template writes it, up to its end token: what a model would have sampled."""
    message = {"role": "assistant", "content": "It is 7.", **({"tool_calls": calls} if calls else {})}
    if style == "gemma-4" and calls:  # it writes a turn's text behind the answers
        message["content"] = ""
    if style == "deepseek" and calls:
        message["tool_calls"] = [{**c, "function": {**c["function"], "arguments": "{}"}} for c in calls]
    whole = tokenizer.apply_chat_template([USER, message], tokenize=False)
    start = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    text = whole[len(start) :]
    ending = tokenizer.convert_ids_to_tokens(end)
    text = text[: text.rindex(ending)] if ending in text else text
    return message, [*tokenizer(text, add_special_tokens=False)["input_ids"], end]


@pytest.mark.parametrize("style", [style for style in STYLES if style != "gemma"])
@pytest.mark.parametrize("calls", [[CALL], []])
def test_the_ids_are_those_of_a_full_rendering(style, calls):
    tokenizer, continuation = made(style)
    end = end_of(style, tokenizer, calls)
    message, turn = sampled(style, tokenizer, calls, end)
    following = [TOOL] if calls else [{"role": "user", "content": "And 5 + 6?"}]
    prompt = continuation.full_ids([USER])
    after = continuation.ids(end, calls, following)
    got = prompt + turn + after
    text = tokenizer.apply_chat_template(
        [USER, message, *following], tokenize=False, add_generation_prompt=True
    )
    want = tokenizer(text, add_special_tokens=False)["input_ids"]
    if (
        style == "gpt-oss" and not calls
    ):  # a turn ends by <|return|> when sampled, and by <|end|> in a history
        place = len(prompt + turn) - 1
        assert tokenizer.convert_ids_to_tokens(want[place]) == "<|end|>"
        want[place] = end
    assert tokenizer.decode(got) == tokenizer.decode(want)
    # Where a prompt ends in white space, a full rendering may merge it with what the model writes.
    assert want[-len(after) - 1 :] == [end, *after]
    if style not in ("llama", "mistral"):
        assert got == want


def test_a_template_without_a_role_for_tools_takes_their_answers_from_the_user():
    tokenizer, continuation = made("gemma")
    end = end_of("gemma", tokenizer, [])
    ids = continuation.ids(end, [CALL], [TOOL])
    assert tokenizer.decode(ids) == "\n<start_of_turn>user\n7<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize("style", ["qwen", "mistral", "deepseek", "glm"])
def test_two_calls_are_answered_in_one_go(style):
    tokenizer, continuation = made(style)
    end = end_of(style, tokenizer, TWO)
    answers = [TOOL, {**TOOL, "tool_call_id": "call00001", "content": "11"}]
    text = tokenizer.decode(continuation.ids(end, TWO, answers))
    assert text.index("7") < text.index("11")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("hostile", ["a {} b", "{}", "{0}{0}", "x{}"])
def test_tokens_spelled_out_by_a_tool_stay_text(style, hostile):
    tokenizer, continuation = made(style)
    end = end_of(style, tokenizer, [CALL])
    plain = continuation.ids(end, [CALL], [{**TOOL, "content": hostile.format("word")}])
    added = set(tokenizer.get_added_vocab().values())
    of_template = [i for i in plain if i in added]
    for token in [*STYLES[style][1], *STYLES[style][2]]:
        content = hostile.format(token)
        got = continuation.ids(end, [CALL], [{**TOOL, "content": content}])
        assert [i for i in got if i in added] == of_template
        assert content.replace('"', "") in tokenizer.decode(got).replace("\\", "")


def test_a_turn_that_a_stop_string_ended_gets_the_end_token():
    tokenizer, continuation = made("qwen")
    text = tokenizer.decode(continuation.ids(None, [], [{"role": "user", "content": "more"}]))
    assert text == "<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_rewrites_the_turn_is_refused():
    tokenizer, continuation = made("qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last else m.content | upper }}"
        "<|im_end|>\n{% endfor %}"
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(CannotContinue, match="writes a turn in another way once messages follow it"):
        continuation.ids(end, [], [{"role": "user", "content": "more"}])


def test_thinking_that_a_template_drops_stays():
    """The dummy turn has no thinking; what the model wrote is never rendered again."""
    tokenizer, continuation = made("qwen")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = continuation.ids(end, [], [{"role": "user", "content": "more"}])
    assert tokenizer.decode(ids) == "\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("eos", [["<|end|>", "<|endoftext|>"], ["<|endoftext|>"]])
def test_an_end_of_text_behind_the_last_turn_is_not_the_turns_end(eos):
    """Phi's template: the next message's opening token is not swallowed, whichever token the model ended with."""
    tokenizer = chat_tokenizer("phi")
    ids = tokenizer.convert_tokens_to_ids(eos)
    for end in ids:
        found = Continuation(tokenizer, frozenset(ids)).ids(end, [], [{"role": "user", "content": "more"}])
        assert tokenizer.decode(found) == "\n<|user|>\nmore<|end|>\n<|assistant|>\n"


def with_template(template, style="phi"):
    tokenizer, continuation = made(style)
    tokenizer.chat_template = template
    return tokenizer, continuation, tokenizer.convert_tokens_to_ids(STYLES[style][3][0])


def test_a_last_turn_that_is_written_otherwise_is_followed():
    """Some templates write ids into a call only once its answer follows."""
    tokenizer, continuation, end = with_template(APRIEL)
    text = tokenizer.decode(continuation.ids(end, TWO, [TOOL, {**TOOL, "tool_call_id": "call00001"}]))
    assert text == "\n<|tool|>\n7<|end|>\n<|tool|>\n7<|end|>\n<|assistant|>\n"


@pytest.mark.parametrize("following", [TOOL, USER])
def test_content_that_a_template_leaves_out_is_refused(following):
    tokenizer, continuation, end = with_template(PARTS, "qwen")
    with pytest.raises(CannotContinue, match="leaves out the content of messages of the role assistant"):
        continuation.ids(end, [CALL] if following is TOOL else [], [following])
    tokenizer.chat_template = STYLES["qwen"][0].replace(
        "{{ m.content }}\n</tool_response>", "</tool_response>"
    )
    continuation = Continuation(tokenizer, frozenset([end]))
    if following is TOOL:  # taken for a template without a role for tools, and answered by the user
        assert "<|im_start|>user\n7<|im_end|>" in tokenizer.decode(continuation.ids(end, [CALL], [TOOL]))
    tokenizer.chat_template = STYLES["qwen"][0].replace(
        "{{ m.content }}<|im_end|>\n{% endif %}", "<|im_end|>\n{% endif %}"
    )
    with pytest.raises(CannotContinue, match="leaves out the content of messages of the role user"):
        Continuation(tokenizer, frozenset([end])).ids(end, [], [USER])


def test_the_tools_are_shown_once():
    """A template that puts them before the last question doesn't put them there again with every answer."""
    tokenizer, continuation, _ = with_template(TOOLS_LAST, "mistral")
    continuation.tools = [{"function": {"name": "add"}}]
    assert "[TOOLS]" in tokenizer.decode(continuation.full_ids([USER]))
    end = tokenizer.convert_tokens_to_ids("</s>")
    assert tokenizer.decode(continuation.ids(end, [], [USER])) == "[INST]What is 3 + 4?[/INST]"


def test_an_id_that_a_template_refuses_is_replaced():
    """Mistral's wants nine characters, whatever the model wrote."""
    tokenizer, continuation = made("mistral")
    end = end_of("mistral", tokenizer, [CALL])
    calls, answer = [{**CALL, "id": "functions.add:0"}], {**TOOL, "tool_call_id": "functions.add:0"}
    assert continuation.ids(end, calls, [answer]) == continuation.ids(end, [CALL], [TOOL])


def test_calls_are_numbered_through_the_conversation():
    tokenizer, continuation, end = with_template(NUMBERED)
    for earlier in (0, 1, 3):
        text = tokenizer.decode(continuation.ids(end, [CALL], [TOOL], earlier))
        assert text == f"\n<|tool|>\n{earlier}: 7<|end|>\n<|assistant|>\n"
