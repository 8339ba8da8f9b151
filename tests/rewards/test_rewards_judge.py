"""The `judge` reward, with an endpoint in this process that refuses, stumbles, hangs and dies."""

from __future__ import annotations

import itertools
import math
import os
import time

import pytest

from grpokit.config.checks import check_model_config
from grpokit.config.options import ModelConfig
from grpokit.rewards import Report, RewardError, judge_endpoint, score
from grpokit.rewards.judge import read_answer
from helpers.completions import CHAT, group, load
from helpers.judging import FakeEndpoint, chat_answer, length_judge
from helpers.refusals import refuses


@pytest.fixture
def endpoint(monkeypatch):
    """endpoint(reply) -> a FakeEndpoint; all are closed at the end, and pauses are short."""
    monkeypatch.setattr(judge_endpoint, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = []

    def endpoint(reply, **kwargs):
        made.append(FakeEndpoint(reply, **kwargs))
        return made[-1]

    yield endpoint
    for one in made:
        one.close()


def judged(server, groups, columns=(), **options):
    """(rewards, metrics) of the groups."""
    report = Report()
    rewards = load("judge", columns=columns, **({"judge_url": server.url} | options))
    done = score(groups, rewards, timeout=30, report=report)
    values = [value for one in done for value in one.reward.tolist()]
    counts = {name.removeprefix("judge/"): metric.value for name, metric in report.metrics.items()}
    return values, counts, done


# --------------------------------------------------------------------------- what is asked, and what is read


def test_the_rubric_shows_prompt_completion_and_reference(endpoint):
    server = endpoint(lambda body, count: chat_answer("Good.\nScore: 7"))
    groups = [group("A {prompt}", "B", content=[*CHAT, {"role": "assistant", "content": "hm"}], solution="R")]
    values, counts, done = judged(server, groups, columns=("solution",))
    assert values == [0.7, 0.7]
    assert counts == {"refusals": 0, "malformed": 0, "too_long": 0, "cached": 0, "errors": 0}
    assert done[0].extras == {"judge": ["Good.\nScore: 7"] * 2}
    texts = [body["messages"][0]["content"] for body in server.asked]
    (first,) = (text for text in texts if "A {prompt}" in text)  # what is filled in is not filled in again
    assert "<prompt>\nuser: q\n\nassistant: hm\n</prompt>" in first
    assert "<reference_answer>\nR\n</reference_answer>" in first
    assert {k: v for k, v in server.asked[0].items() if k != "messages"} == {
        "model": "m",
        "temperature": 0,
        "max_tokens": 1024,
        "seed": 0,
    }
    judged(server, [group("A")])
    assert "reference" not in server.asked[-1]["messages"][0]["content"]


def test_a_rubric_of_ones_own(endpoint, tmp_path):
    server = endpoint(lambda body, count: chat_answer('{"score": 2.5}'))
    rubric = tmp_path / "rubric.txt"
    rubric.write_text('{level}/{answer}/{completion} JSON: {"score": 1} {}')
    options = {"judge_rubric": str(rubric), "judge_model": "other", "judge_max_tokens": 9}
    groups = [group("c", level=3, truth=4), group("d", line=2, level=None, truth=4)]
    values = judged(server, groups, ("level", "truth"), answer_column="truth", **options)[0]
    assert values[0] == 0.25
    assert math.isnan(values[1])  # its row lacks a column that the rubric names
    (body,) = server.asked
    assert body["messages"] == [{"role": "user", "content": '3/4/c JSON: {"score": 1} {}'}]
    assert (body["model"], body["max_tokens"]) == ("other", 9)
    refuses(
        lambda: judged(server, groups, ("levle", "answer"), **options),
        f"--judge_rubric {rubric}: {{level}} is no column (did you mean 'levle'?); there are prompt, completion, answer",
    )
    rubric.write_text("{prompt}")
    refuses(lambda: judged(server, groups, **options), f"--judge_rubric {rubric}: has no {{completion}}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Score: 7", 7),
        ("Right.\n\n**Score:** 8.5/10.\n", 8.5),
        ("Final score: 7", None),
        ('Hm.\n{"reason": "x", "score": 0}', 0),
        ('{"score": 10}', 10),
        ("Score: 7\nThank you", None),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: seven", None),
        ("Score: 7 8", None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ("7", None),
    ],
)
def test_a_score_is_read_strictly(text, value):
    verdict = read_answer(chat_answer(text)["choices"][0])
    assert verdict.score == (None if value is None else value / 10)
    assert verdict.why == ("malformed" if value is None else "")


def test_refused_malformed_and_cut_answers_are_asked_for_again_and_then_do_not_apply(endpoint):
    def reply(body, count):
        text = body["messages"][0]["content"]
        if "slow to answer" in text and count == 2:
            return chat_answer("Score: 4")
        if "refused" in text:
            return chat_answer(None, refusal="no") if count % 2 else chat_answer("", "content_filter")
        if "cut" in text:
            return chat_answer("Score: 1", "length")
        if "endless" in text:
            return 400, {"error": {"message": "This model's maximum context length is 256 tokens"}}
        return chat_answer("I think 7")

    server = endpoint(reply)
    texts = ["slow to answer", "refused", "cut", "malformed", "endless", "malformed"]
    values, counts, done = judged(server, [group(*texts)], judge_retries=2)
    assert values[0] == 0.4
    assert all(map(math.isnan, values[1:]))
    assert counts == {"refusals": 1, "malformed": 3, "too_long": 1, "cached": 0, "errors": 0}
    assert len(server.asked) == 3 * 4 + 1  # the second "malformed" is the same question
    assert sorted({body["seed"] for body in server.asked}) == [0, 1, 2]
    assert done[0].extras["judge"][1] in ("no", "")


def test_a_call_without_any_score_is_said_once_in_a_while(endpoint, capsys):
    server = endpoint(lambda body, count: chat_answer("Dear user,\n" + "x" * 500 + " I give it seven"))
    rewards = load("judge", columns=(), judge_url=server.url, judge_retries=0)
    for call in range(1, 11):
        score([group("a", f"b{call}")], rewards)
        said = capsys.readouterr().out
        assert ("note: judge: no score for any of 2 completions (2 malformed)" in said) == (call in (1, 10))
        assert not said or ("I give it seven'; see that --judge_rubric" in said and "Dear user" not in said)
    mixed = endpoint(
        lambda body, count: chat_answer("Score: 5" if "good" in body["messages"][0]["content"] else "hm")
    )
    judged(mixed, [group("good", "bad")], judge_retries=0)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("host:8000", "http://host:8000/v1"),
        ("http://host/v1/", "http://host/v1"),
        ("http://host/v1/chat/completions", "http://host/v1"),
        ("https://host/openai/chat/completions/", "https://host/openai"),
        ("https://host/chat/completions", "https://host"),
        ("http://host/v1/models", "http://host/v1"),
    ],
)
def test_the_address_may_be_that_of_a_request(url, address):
    assert judge_endpoint.Endpoint(url).address == address


# --------------------------------------------------------------------------- an endpoint in trouble


def test_a_stumbling_endpoint_is_asked_again(endpoint):
    replies = iter(
        [(500, {}), (429, {"error": "slow down"}), None, {"no": "choices"}, chat_answer("Score: 5")]
    )
    server = endpoint(lambda body, count: next(replies))
    values, counts, _ = judged(server, [group("a")], judge_retries=4)
    assert (values, counts["errors"]) == ([0.5], 4)
    assert {body["seed"] for body in server.asked} == {0}  # the same question


def test_an_endpoint_that_dies_ends_the_run_and_names_the_row(endpoint):
    server = endpoint(lambda body, count: chat_answer("Score: 5"))
    assert judged(server, [group("a")])[0] == [0.5]
    rewards = load("judge", columns=(), judge_url=server.url, judge_retries=2)
    server.close()
    refuses(
        lambda: score([group("a", line=7)], rewards),
        f"judge: --judge_url {server.url}: no answer in 3 tries (ConnectError",
        "(while scoring a completion of t.jsonl:7)",
        kind=RewardError,
    )
    refuses(
        lambda: load("judge", columns=(), judge_url=server.url),
        f"--judge_url {server.url}: no endpoint answers there",
    )


def test_a_hanging_endpoint_is_given_up_and_the_reward_timeout_does_not_count(endpoint):
    server = endpoint(lambda body, count: time.sleep(0.3) or chat_answer("Score: 5"))
    rewards = load("judge", columns=(), judge_url=server.url, judge_retries=1, judge_timeout=0.05)
    said = "no answer in 2 tries (none within 0.05 seconds)"
    refuses(lambda: score([group("a")], rewards), said, kind=RewardError)
    patient = load("judge", columns=(), judge_url=server.url)
    assert score([group("a")], patient, timeout=0.1)[0].reward.tolist() == [0.5]


def test_a_refused_request_ends_the_run_at_once_and_the_key_is_never_said(endpoint, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    server = endpoint(lambda body, count: (401, {"error": "Incorrect API key: sk-secret"}))
    error = refuses(
        lambda: judged(server, [group("a")], judge_api_key_env="MY_KEY"),
        "refuses the request (status 401",
        "Incorrect API key: ***",
        kind=RewardError,
    )
    assert len(server.asked) == 1
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(error)
    several = endpoint(length_judge, models=("a", "b"))
    refuses(lambda: judged(several, []), "has 2 models (a, b); name one by --judge_model")


def test_at_most_so_many_requests_at_once(endpoint):
    server = endpoint(lambda body, count: time.sleep(0.02) or length_judge(body))
    judged(server, [group(*map(str, range(12)))], judge_concurrency=3)
    assert (server.most, len(server.asked)) == (3, 12)


# --------------------------------------------------------------------------- the cache


def test_a_second_run_asks_nothing(endpoint, tmp_path):
    def reply(body, count):
        return chat_answer("hm") if "odd" in body["messages"][0]["content"] else length_judge(body)

    server = endpoint(reply)
    groups = [group("a", "b", "odd")]
    options = {"judge_cache": str(tmp_path / "cache"), "judge_model": "m", "judge_retries": 1}
    first, counts, done = judged(server, groups, **options)
    assert counts["cached"] == 0
    asked = len(server.asked)
    server.close()
    second, again, same = judged(server, groups, **options)
    assert (second[:2], math.isnan(second[2])) == (first[:2], True)
    assert again == counts | {"cached": 3}
    assert same[0].extras == done[0].extras
    assert not list(tmp_path.rglob("*.writing"))
    other = endpoint(reply)
    changes = [{"judge_model": "n"}, {"judge_max_tokens": 5}, {"judge_retries": 2}]
    for number, change in itertools.product([0, 1], changes):  # each decides the answer
        judged(other, [group("a")], **(options | change))
        assert len(other.asked) == (3 if number else changes.index(change) + 1)
    assert asked == 4
    for file in (tmp_path / "cache").rglob("*.json"):
        file.write_text("{")
    refuses(lambda: judged(other, groups, **options), "is no verdict of a judge; delete it", kind=RewardError)


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ["--judge_url (missing): --reward_funcs judge needs an endpoint"]),
        (
            {"reward_funcs": ("length",), "judge_url": "x"},
            ["--judge_url x: does nothing without the reward judge"],
        ),
        ({"judge_url": "x", "judge_retries": -1}, ["--judge_retries -1: must be 0 or more"]),
        ({"judge_url": "x", "judge_timeout": 0.0}, ["--judge_timeout 0.0: must be above 0"]),
        ({"judge_url": "x", "judge_concurrency": 0}, ["--judge_concurrency 0: must be at least 1"]),
        ({"judge_url": "x", "judge_max_tokens": 0}, ["--judge_max_tokens 0: must be at least 1"]),
        (
            {"judge_url": "x", "judge_rubric": "no.txt"},
            ["--judge_rubric no.txt: no such file", "{completion}"],
        ),
        ({"judge_url": "x", "judge_cache": __file__}, [f"--judge_cache {__file__}: is a file"]),
        ({"judge_url": "x", "judge_api_key_env": "NO_KEY"}, ["--judge_api_key_env NO_KEY: there is no such"]),
        ({"judge_url": "x", "cosine_max_len": 0}, ["--cosine_max_len 0: must be at least 1"]),
        (
            {"judge_url": "x", "cosine_min_len_value_wrong": math.inf},
            ["--cosine_min_len_value_wrong inf: must"],
        ),
        ({"judge_url": "x", "reward_routes": ("a",)}, ["--reward_routes a: expected a column"]),
    ],
)
def test_options_that_cannot_work(tmp_path, options, parts):
    assert "NO_KEY" not in os.environ
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "rows.jsonl").write_text("")
    config = ModelConfig(
        model=str(tmp_path), dataset=str(tmp_path / "rows.jsonl"), **({"reward_funcs": ("judge",)} | options)
    )
    refuses(lambda: check_model_config(config), *parts)
