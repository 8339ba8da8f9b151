"""The server of `grpokit watch`: its answers, who gets one, and the command itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import httpx
import pytest
from starlette.testclient import TestClient

import grpokit.commands.watch.run as run_module
from grpokit.commands.cli import main, parse
from grpokit.commands.watch.access import host_name
from grpokit.commands.watch.server import listen, make_app
from grpokit.config.commands import WatchConfig
from grpokit.runs.advice import Advice
from helpers.synthetic_runs import evil_run, write_lines
from helpers.watched import append_step, make_watched_run, write_tokens

HOME = "http://localhost:8700"


@pytest.fixture
def run(tmp_path):
    """A run of 12 steps, with tokens of some."""
    return make_watched_run(tmp_path / "demo", 20, 12)


@pytest.fixture
def client(run):
    """A browser of this machine."""
    with TestClient(make_app([run]), base_url=HOME) as opened:
        yield opened


def answer(client, question, **given):
    """The JSON of an answer, which has no NaN."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    response = client.get(f"/api/{question}", params=given)
    assert response.status_code == 200, response.text
    return json.loads(response.text, parse_constant=refuse)


# --------------------------------------------------------------------------- answers


def test_the_page_and_its_files_are_served(client):
    assert "<title>grpokit watch</title>" in client.get("/").text
    assert "--blue" in client.get("/page.css").text
    for name in ("main", "chart", "tokens", "completions"):
        response = client.get(f"/{name}.js")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/javascript")
    for wrong in ("/server.py", "/../server.py", "/%2e%2e/server.py", "/config.yaml", "/api/nothing"):
        assert client.get(wrong).status_code == 404


def test_changes_are_told_once(client, run):
    first = answer(client, "changes")
    assert [(found["name"], found["state"], found["step"]) for found in first["runs"]] == [
        ("demo", "running", 12)
    ]
    assert answer(client, "changes", since=first["version"]) == {"version": first["version"], "same": True}
    append_step(run, 13, 20)
    second = answer(client, "changes", since=first["version"])
    assert second["runs"][0]["step"] == 13


def test_an_overview_has_what_the_run_has_written(client):
    found = answer(client, "overview", run="demo")
    assert (found["step"], found["maxSteps"]) == (12, 20)
    assert found["secondsLeft"] == pytest.approx(8 * 0.4)
    assert [card["title"] for card in found["cards"]][:2] == ["Reward", "pass@1, sampled"]
    assert found["about"]["plan"].startswith("8 prompts")
    assert found["settings"][0]["changed"]
    assert {setting["name"] for setting in found["settings"]} >= {"loss_type", "max_steps"}
    assert found["problems"] == []
    assert found["panels"][0]["key"] == "reward"


def test_advice_is_asked_with_the_runs_rows_and_options(client, monkeypatch):
    class Asked:
        def __init__(self, config):
            assert config["max_steps"] == 20

        def start(self, steps, evaluations):
            assert [row["step"] for row in steps] == list(range(1, 13))
            assert steps[-1]["reward"] == steps[11]["reward"]
            assert [row["step"] for row in evaluations] == [0, 20]

        def advice(self):
            return [Advice("rule", "warn", "Raise it.", 12, "guides/not-learning.md#x")]

    monkeypatch.setattr(run_module, "Adviser", Asked)
    [said] = answer(client, "overview", run="demo")["advice"]
    assert said == {
        "rule": "rule",
        "severity": "warn",
        "text": "Raise it.",
        "step": 12,
        "guide": "guides/not-learning.md#x",
        "now": True,
    }


def test_advice_is_the_same_step_by_step_and_after_a_resume(tmp_path):
    """Only new steps are looked at, and all of them where the run went back to a checkpoint."""
    folder = make_watched_run(tmp_path / "demo", 40, 8)
    watched = run_module.WatchedRun("demo", folder)

    def whole():
        fresh = run_module.WatchedRun("demo", folder)
        fresh.refresh()
        return fresh.advice()

    def write(steps, share):
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": s, "completions/clipped_ratio": share}) + "\n" for s in steps)

    for steps, share, expected in (
        (range(9, 25), 0.9, True),
        (range(25, 26), 0.9, True),
        (range(9, 31), 0.0, False),
    ):
        write(steps, share)
        watched.refresh()
        found = watched.advice()
        assert found == whole()
        assert any(each.rule == "truncation" and each.now for each in found) == expected


def test_completions_are_paged_filtered_and_found(client):
    found = answer(client, "completions", run="demo")
    assert (found["step"], found["total"], found["pages"], found["unit"]) == (12, 32, 2, "tokens")
    assert found["steps"] == list(range(1, 13))
    assert len(found["rows"]) == 20
    assert sum(found["endings"].values()) == 32
    some = answer(client, "completions", run="demo", step=3, reward_min=1, sort="length", order="up", page=99)
    assert some["page"] == some["pages"] - 1
    assert all(row["reward"] == 1 for row in some["rows"])
    held = answer(client, "completions", run="demo", holding="3/7")
    assert held["page"] == 1
    full = answer(client, "completion", run="demo", step=12, group=3, generation=7)
    assert full["messages"][1]["tool_calls"][0]["function"]["name"] == "calculate"
    assert full["prompt"] == [{"role": "user", "content": "Question 3 of step 12"}]
    assert full["extras"]["parsed"] == str(full["length"])


def test_tokens_are_found_by_step_and_completion(client):
    found = answer(client, "recorded", run="demo")
    assert (found["steps"], found["step"], len(found["completions"])) == ([1, 6, 11], 11, 4)
    tokens = answer(client, "tokens", run="demo", step=6, place=2)
    assert (tokens["group"], tokens["length"]) == (1, 60)
    assert None in tokens["columns"]["entropies"]
    assert set(tokens["columns"]["state"]) == set(range(5))


def test_long_completions_are_read_in_parts(client, run):
    write_tokens(run, 11, num=2, length=5_000)
    first = answer(client, "tokens", run="demo", step=11, place=1)
    rest = answer(client, "tokens", run="demo", step=11, place=1, first=4_096)
    assert len(first["columns"]["pieces"]) == first["most"] == 2048
    assert len(rest["columns"]["pieces"]) == 5_000 - 4_096


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("overview?run=../demo", "run '../demo': there is none of that name"),
        ("overview", "run ''"),
        ("completions?run=demo&step=-1", "step '-1': expected a whole number"),
        ("completions?run=demo&reward_min=much", "reward_min 'much': expected a number"),
        ("completions?run=demo&sort=text", "sort 'text': expected group, reward or length"),
        ("completion?run=demo&step=12&group=9&generation=0", "completion 9/0"),
        ("tokens?run=demo&step=2&place=0", "step 2: its tokens were not recorded"),
        ("tokens?run=demo&step=6&place=4", "completion 4: the step has 4"),
    ],
)
def test_a_question_that_has_no_answer_says_why(client, question, said):
    response = client.get(f"/api/{question}")
    assert response.status_code == 400
    assert said in response.json()["error"]


def test_a_run_that_has_yet_to_begin_waits(tmp_path):
    with TestClient(make_app([tmp_path / "later"]), base_url=HOME) as client:
        assert answer(client, "changes")["runs"][0]["text"] == "waiting for the first step"
        found = answer(client, "overview", run="later")
        assert (found["panels"], found["cards"], found["settings"]) == ([], [], [])
        assert answer(client, "completions", run="later")["rows"] == []
        assert answer(client, "recorded", run="later")["steps"] == []
        make_watched_run(tmp_path / "later", 5)
        assert answer(client, "changes")["runs"][0]["step"] == 5


def test_runs_that_begin_later_are_found(tmp_path):
    make_watched_run(tmp_path / "runs" / "one", 3)
    with TestClient(make_app([tmp_path / "runs"]), base_url=HOME) as client:
        assert [run["name"] for run in answer(client, "changes")["runs"]] == ["one"]
        make_watched_run(tmp_path / "runs" / "sweep" / "seed-1", 4, loss_type="dapo")
        assert [run["name"] for run in answer(client, "changes")["runs"]] == ["one", "sweep/seed-1"]
        found = answer(client, "compare", run=["one", "sweep/seed-1"])
        assert {row["name"]: row["values"] for row in found["differing"]}["loss_type"] == ["grpo", "dapo"]
        assert {"name": "max_steps", "values": ["3", "4"]} in found["differing"]


def test_a_hostile_run_is_valid_json(tmp_path):
    evil_run(tmp_path / "evil")
    write_lines(
        tmp_path / "evil" / "metrics.jsonl",
        [{"step": 1, "reward": float("nan"), "kl": float("inf"), "loss": 0.1}],
    )
    (tmp_path / "evil" / "about.json").write_text('{"parameters": NaN}')
    with TestClient(make_app([tmp_path / "evil"]), base_url=HOME) as client:
        assert answer(client, "overview", run="evil")["about"] == {"parameters": None}
        rows = answer(client, "completions", run="evil", step=20)["rows"]
        assert rows[0]["text"].startswith("<script>")
        answer(client, "completion", run="evil", step=20, group=0, generation=2)


# --------------------------------------------------------------------------- who gets an answer


def test_the_browser_is_told_to_keep_the_page_to_itself(client):
    for path in ("/", "/main.js", "/api/changes", "/nothing"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "connect-src 'self'" in policy
        assert "unsafe" not in policy
    assert client.get("/").headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in client.get("/api/changes").headers


@pytest.mark.parametrize("host", ["localhost", "localhost:8700", "127.0.0.1:9", "[::1]:8700", "LOCALHOST"])
def test_names_of_this_machine_are_answered(client, host):
    assert client.get("/api/changes", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8700",
        "localhost.evil.example",
        "127.0.0.1.nip.io",
        "10.0.0.7",
        "[::1].evil",
        "[localhost]",
        "",
    ],
)
def test_other_names_that_lead_here_are_refused(client, host):
    for path in ("/", "/api/changes", "/main.js"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 421
        assert "demo" not in response.text


def test_nothing_can_be_written(client):
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/api/changes").status_code == 405


def test_with_a_token_only_who_has_it_is_answered(run):
    app = make_app([run], "s3cret")
    with TestClient(app, base_url="http://box.lan:8700", follow_redirects=False) as client:
        for path in (
            "/",
            "/main.js",
            "/api/changes",
            "/api/changes?token=",
            "/api/changes?token=s3cre",
            "/?token=S3CRET",
        ):
            response = client.get(path)
            assert response.status_code == 401, path
            assert "demo" not in response.text
        assert client.get("/api/changes", headers={"cookie": "grpokit_watch=s3cret"}).status_code == 401
        assert client.get("/api/changes?token=s3cret").status_code == 200
        opened = client.get("/?token=s3cret")
        assert (opened.status_code, opened.headers["location"]) == (303, "./")
        assert {"httponly", "samesite=lax"} <= set(opened.headers["set-cookie"].lower().split("; "))
        assert client.get("/").status_code == 200  # by the cookie
        assert client.get("/api/changes").status_code == 200
        client.cookies.clear()
        assert client.get("/api/changes").status_code == 401


def test_a_token_that_is_not_text_is_refused(run):
    with TestClient(make_app([run], "s3cret"), base_url=HOME) as client:
        assert client.get("/api/changes?token=%ff%00é").status_code == 401
        assert client.get("/api/changes", headers={"cookie": 'a="; =;;[]'}).status_code == 401


def test_host_names_are_read_without_ports():
    assert [host_name(h) for h in ("[::1]:1", "a:2", "A", "")] == ["::1", "a", "a", ""]


# --------------------------------------------------------------------------- the command


def test_a_port_that_is_taken_gives_the_next_one():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listen("127.0.0.1", port) as second:
            assert second.getsockname()[1] > port


def test_a_host_of_another_machine_is_refused():
    with pytest.raises(ValueError, match=r"--host 192.0.2.1 --port \d+: .*; use 127.0.0.1"):
        listen("192.0.2.1", 8700)


def test_options_of_the_command():
    assert parse(["watch", "runs/a", "runs/b"]) == WatchConfig(("runs/a", "runs/b"))
    config = parse(["watch", "runs", "--host", "0.0.0.0", "--port", "9000", "--open"])
    assert (config.host, config.port, config.open) == ("0.0.0.0", 9000, True)


def test_what_is_missing_is_said(capsys, monkeypatch):
    assert main(["watch"]) == 2
    assert "watch: name a run" in capsys.readouterr().err
    assert main(["watch", "x", "--port", "70000"]) == 2
    assert "--port 70000: expected a number" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["watch", "x"]) == 2
    assert 'watch: needs uvicorn; pip install "grpokit[watch]"' in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_serves_until_it_is_interrupted(run, host):
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "from grpokit.commands.cli import main; code = main(); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "watch", str(run), "--host", host, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        address = line.split()[0]
        assert str(run) in line
        assert ("token=" in address) == (host == "0.0.0.0")
        port = address.split(":")[2].split("/")[0]
        here = f"http://127.0.0.1:{port}/"
        bare = httpx.get(f"{here}api/changes", trust_env=False)
        assert bare.status_code == (200 if host == "127.0.0.1" else 401)
        query = address.partition("?")[2]
        assert httpx.get(f"{here}api/changes?{query}", trust_env=False).json()["runs"][0]["step"] == 12
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert errors.strip() == "stopped by Ctrl-C"
    assert process.returncode == 130
