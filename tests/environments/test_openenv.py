"""OpenEnv: real servers on the loopback interface, their tools, texts and errors, and a run that trains on them."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openenv", reason='needs pip install "grpokit[openenv]"')

from grpokit.environments import openenv, openenv_session
from grpokit.environments.contract import EnvironmentFailed, load_environments
from grpokit.rollouts import episodes as rollouts_of_episodes
from grpokit.types import NoRoom
from helpers.agents import config_of
from helpers.launch import rows
from helpers.places import TESTS
from helpers.refusals import refuses
from helpers.running import start, train

SERVER = TESTS / "environments" / "openenv_server.py"


@pytest.fixture(scope="module")
def urls():
    """The servers' URLs, by name."""
    # The warnings are those of OpenEnv's own packages.
    command = [sys.executable, "-W", "ignore", SERVER]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with pytest.MonkeyPatch.context() as patch:  # OpenEnv does without it, and its import takes the longest
        patch.setitem(sys.modules, "gradio", None)
        importlib.import_module("openenv.core.generic_client")
    try:
        yield json.loads(server.stdout.readline())
    finally:
        server.stdin.close()
        server.wait(20)
        server.stdout.close()


def kind_of(url):
    (kind,) = load_environments([f"openenv:{url}"]).values()
    return kind


def in_session(kind, play, **columns):
    """What `play(session)` returns, after a reset."""

    async def episode():
        session = kind.make()
        try:
            return await session.reset(**columns), await play(session)
        finally:
            await session.close()

    return asyncio.run(episode())


def sampled(tmp_path, url, generations=3, prompts=2, **changes):
    """The episodes of a run, group by group."""
    run = start(config_of(tmp_path, environment=(f"openenv:{url}",), **changes))
    try:
        groups = run.rollouts.sampler.sample(run.prompts.take(0, prompts), generations)
        return [[rollout.episode for rollout in group.rollouts] for group in groups]
    finally:
        run.close()


# --------------------------------------------------------------------------- what a server has


def test_an_action_of_one_text_is_the_models_text(urls):
    kind = kind_of(urls["worlds"] + "/parrot")
    assert (kind.name, kind.has_steps, kind.schemas) == ("A_parrot", True, [])

    async def play(session):
        seen = [await session.step("four"), await session.step("five5"), await session.step("")]
        return seen, session.get_reward()

    first, (seen, reward) = in_session(kind, play, seed=2, word="bird", prompt="Talk.", ignored={1, 2})
    assert first == "\n\nSeed 2, word bird."
    assert [s.content for s in seen] == ["4 characters", "5 characters", "0 characters"]
    assert [s.done for s in seen] == [False, False, True]
    assert [s.reward for s in seen] == [0.25, 0.0, 0.25]  # the second has None
    assert reward == 0.5


def test_another_action_is_a_tool_with_its_schema(urls):
    kind = kind_of(urls["worlds"] + "/board/")
    (schema,) = kind.schemas
    assert kind.name == "Board"
    assert not kind.has_steps
    assert schema["function"]["name"] == "step"
    assert schema["function"]["description"] == "Moves on the board."
    assert set(schema["function"]["parameters"]["properties"]) == {"x", "y"}
    assert schema["function"]["parameters"]["required"] == ["x"]

    async def play(session):
        step = kind.tools_of(session)["step"].function
        first = await step(x=2)
        for wrong, message in (
            ({"x": "two"}, "x: Input should be a valid integer"),
            ({"z": 1}, "z: Extra inputs"),
        ):
            with pytest.raises(openenv_session.ServerError, match=message):
                await step(**wrong)
        with pytest.raises(openenv_session.ServerError, match="no way back"):
            await step(x=-1)
        last = await step(x=3, y=1)
        with pytest.raises(openenv_session.ServerError, match="the episode is over"):
            await step(x=1)
        return first, last, session.get_reward()

    text, (first, last, reward) = in_session(kind, play, seed=0)
    assert text is None
    assert json.loads(first.content) == {"at": [2, 0], "moves": 1}
    assert (first.done, last.done, reward) == (False, True, 5.0)


def test_tools_of_an_mcp_environment_are_the_models_tools(urls):
    kind = kind_of(urls["worlds"] + "/sums")
    add, fail = (schema["function"] for schema in kind.schemas)
    assert (add["name"], add["description"], fail["name"]) == ("add", "Add two numbers.", "fail")
    assert set(add["parameters"]["properties"]) == {"a", "b"}

    async def play(session):
        tools = kind.tools_of(session)
        first = await tools["add"].function(a=3, b=4)
        with pytest.raises(openenv_session.ServerError, match="because"):
            await tools["fail"].function(why="because")
        last = await tools["add"].function(a=99, b=1)
        return first, last, session.get_reward()

    _, (first, last, reward) = in_session(kind, play, seed=0)
    assert (first.content, first.done, last.done, reward) == ("7", False, True, 1.5)


def test_an_answer_that_comes_too_late_is_not_the_next_ones(urls):
    kind = kind_of(urls["worlds"] + "/board")

    async def play(session):
        step = kind.tools_of(session)["step"].function
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(step(x=100, y=0), 0.2)
        with pytest.raises(openenv_session.ServerError, match="no way back"):
            await step(x=-1)
        return session.get_reward(), session.done

    assert in_session(kind, play, seed=0)[1] == (100.0, True)  # the late step counts


# --------------------------------------------------------------------------- episodes


def test_many_episodes_at_once_have_sessions_of_their_own_and_a_groups_members_one_seed(tmp_path, urls):
    groups = sampled(tmp_path, urls["worlds"] + "/parrot", generations=32)
    seeds = []
    for group in groups:
        firsts = {episode.prompt_ids for episode in group}
        assert len(firsts) == 1  # the prompt shows the seed
        seeds.append(firsts)
        for episode in group:
            said = [m["content"] for m in episode.messages if m["role"] == "assistant"]
            answers = [m["content"] for m in episode.messages if m["role"] == "user"]
            assert answers == [f"{len(text)} characters" for text in said[: len(answers)]]
    assert seeds[0] != seeds[1]
    assert {episode.ending for group in groups for episode in group} >= {"done"}


def test_a_full_server_is_waited_for_and_samples_the_same(tmp_path, urls):
    wide = sampled(tmp_path, urls["worlds"] + "/parrot")
    narrow = sampled(tmp_path, urls["worlds"] + "/narrow")
    assert [[e.messages for e in group] for group in narrow] == [
        [e.messages for e in group] for group in wide
    ]
    assert [[e.reward for e in group] for group in narrow] == [[e.reward for e in group] for group in wide]


def test_a_server_that_stays_full_ends_the_run_with_a_message(tmp_path, urls, monkeypatch):
    monkeypatch.setattr(rollouts_of_episodes, "PATIENCE", 0.5)
    kind = kind_of(urls["worlds"] + "/narrow")

    async def play(session):
        other, third = kind.make(), kind.make()
        try:
            await other.reset(seed=0)
            with pytest.raises(NoRoom, match="max_concurrent_envs"):
                await third.reset(seed=0)
            with pytest.raises(ValueError, match=r"--environment openenv:.*is full.*for 0\.5 seconds"):
                await asyncio.to_thread(sampled, tmp_path, urls["worlds"] + "/narrow")
        finally:
            await other.close()
            await third.close()

    in_session(kind, play, seed=0)
    assert len(sampled(tmp_path, urls["worlds"] + "/narrow", prompts=1)) == 1  # all sessions were closed


def test_calls_of_the_models_are_counted_and_a_done_environment_ends_the_episode(tmp_path, urls):
    (tmp_path / "parser.py").write_text(
        "def move(text):\n    return [{'name': 'step', 'arguments': {'x': 3} if len(text) % 2 else {'x': 'no'}}]\n"
    )
    groups = sampled(
        tmp_path,
        urls["worlds"] + "/board",
        generations=8,
        tool_parser=f"{tmp_path / 'parser.py'}:move",
        max_turns=4,
        max_completion_length=400,
    )
    found = [episode for group in groups for episode in group]
    assert {e.ending for e in found} >= {"done", "turns"}
    for episode in found:
        answers = [m["content"] for m in episode.messages if m["role"] == "tool"]
        moves = sum('"at"' in answer for answer in answers)
        assert (
            episode.failures == len(answers) - moves == sum("x: Input should" in answer for answer in answers)
        )
        assert episode.reward == 3.0 * moves
        assert (episode.ending == "done") == (moves == 2)


def test_a_run_trains_and_logs_the_servers_reward(tmp_path, urls):
    columns = "\n".join(
        json.dumps({"prompt": [{"role": "user", "content": "Say it."}], "word": word, "environment": name})
        for word, name in (("a", "bird"), ("b", "sums"), ("c", "bird"), ("d", "bird"))
    )
    config = config_of(
        tmp_path,
        environment=(f"bird=openenv:{urls['worlds']}/parrot", f"sums=openenv:{urls['worlds']}/sums"),
        log_completions=4,
    )
    Path(config.dataset[0]).write_text(columns + "\n")
    run = start(config)
    train(run)
    run.close()
    steps = rows(Path(config.output_dir), "metrics.jsonl")
    assert len(steps) == 2
    assert all(row["rewards/A_parrot/mean"] > 0 for row in steps)


# --------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("http://127.0.0.1:9", ("no server answers", "start it first")),
        ("", ("expected the server's URL",)),
        ("ftp://here", ("expected the server's URL",)),
    ],
)
def test_a_wrong_url_is_refused_before_a_model_is_loaded(spec, parts):
    refuses(lambda: load_environments([f"openenv:{spec}"]), f"--environment openenv:{spec}: ", *parts)


def test_a_server_of_another_kind_is_refused(urls):
    refuses(
        lambda: kind_of(urls["worlds"] + "/nothing"),
        "/nothing: is no OpenEnv server: GET /schema answered 404",
    )


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openenv.core.generic_client", None)
    refuses(
        lambda: load_environments(["openenv:here"]),
        "--environment openenv:here",
        'pip install "grpokit[openenv]"',
    )


def test_an_environment_that_raises_ends_the_episode_by_name(urls):
    kind = kind_of(urls["worlds"] + "/parrot")
    with pytest.raises(EnvironmentFailed, match=r"--environment openenv:.*step: the parrot is dead"):
        in_session(kind, lambda session: session.step("raise"), seed=0)


def test_a_call_over_its_time_limit_names_it(tmp_path, urls):
    with pytest.raises(
        EnvironmentFailed,
        match=r"A_parrot\.(__init__|reset): no answer within 1e-06 seconds; see --tool_timeout",
    ):
        sampled(tmp_path, urls["worlds"] + "/parrot", tool_timeout=1e-6)


def test_a_server_that_is_lost_in_an_episode_is_named(tmp_path, urls):
    with pytest.raises(
        EnvironmentFailed, match=r"A_parrot\.step: --environment openenv:.*the connection was lost"
    ):
        sampled(tmp_path, urls["fragile"], generations=1, prompts=1)
    refuses(lambda: kind_of(urls["fragile"]), "no server answers")


def test_schemas_of_actions_are_read():
    choice = {"properties": {"move": {"type": "string", "enum": ["up", "down"]}}, "required": ["move"]}
    assert openenv.read_action(choice).text_field is None
    assert openenv.read_action({"properties": {}}).is_mcp
    fixed = openenv.read_action({"properties": {"kind": {"const": "say"}, "text": {"type": "string"}}})
    assert (fixed.text_field, dict(fixed.fixed)) == ("text", {"kind": "say"})
