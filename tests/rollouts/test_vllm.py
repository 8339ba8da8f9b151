"""Sampling through a real vLLM server on a CPU, in an environment of its own: `make test-vllm` makes it and runs this."""

from __future__ import annotations

import dataclasses
import http.server
import json
import math
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from grpokit.batch.plan import unweighted
from grpokit.commands.cli import main
from grpokit.config.options import TrainConfig
from grpokit.policy.learn import Learning
from grpokit.policy.learn import score as log_probs
from grpokit.rewards import Report, RewardError, score
from grpokit.rollouts.pending import RolloutsPending
from grpokit.rollouts.shaping import Shaping
from grpokit.rollouts.step_rollouts import StepRollouts
from grpokit.rollouts.trial import log_probs_alone
from grpokit.rollouts.vllm.sampler import VLLMSampler
from grpokit.rollouts.vllm.server import Server
from grpokit.training import scoring as scoring_room
from grpokit.training.loop import iter_steps
from grpokit.training.run import Run
from grpokit.types import Sample
from helpers import completions
from helpers.agents import WORLDS
from helpers.chat import chat_tokenizer
from helpers.launch import ENVIRONMENT, rows, torchrun
from helpers.places import REWARDS
from helpers.running import start
from helpers.running import train as loop
from helpers.shaped import reference
from helpers.vllm_parts import RunningServer, config_for, make_judge, make_task, metrics_of, needs_vllm, train


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """See `make_task`."""
    return make_task(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def server(task):
    running = RunningServer(task / "model", task / "server.log")
    try:
        running.wait()
        yield running
    finally:
        running.kill()


@needs_vllm
def test_the_two_samplers_log_probs_agree_and_seeds_do_not_depend_on_the_batch(task, server, tmp_path):
    run = start(config_for(task, tmp_path / "run", server.url))
    prompts = run.prompts.take(0, 4)
    groups = run.rollouts.sampler.sample(prompts, 4)
    (alone,) = run.rollouts.sampler.sample(prompts[2:3], 4)
    for a, b in zip(groups[2].rollouts, alone.rollouts, strict=True):
        assert a.completion_ids.tolist() == b.completion_ids.tolist()
    assert len({tuple(r.completion_ids.tolist()) for g in groups for r in g.rollouts}) > 4
    rollouts = [(group, rollout) for group in groups for rollout in group.rollouts]
    rows = [
        Sample(i, 0, g.prompt.ids, r.completion_ids, r.trainable, 0.0, 0.0, len(r.completion_ids), r.logps)
        for i, (g, r) in enumerate(rollouts)
    ]
    ours = log_probs(run.policy, rows, Learning())
    for row in rows:
        torch.testing.assert_close(ours[row.index], row.sampler_logps, rtol=0, atol=1e-4)
    stopped = [r for _, r in rollouts if r.finish_reason == "stop"]
    assert stopped
    for rollout in stopped:
        assert int(rollout.completion_ids[-1]) in run.rollouts.sampler.weights.eos_ids
        assert "<|" not in rollout.text
    run.close()


SHAPES = [Shaping(top_p=0.8), Shaping(top_k=7), Shaping(min_p=0.05), Shaping(0.9, 20, 0.02, 1.2)]


@needs_vllm
def test_the_server_samples_from_the_same_part_of_the_distribution(task, server, tmp_path):
    """The log-prob of each token says how much mass its support has; a token outside it would be −inf here."""
    config = config_for(task, tmp_path / "run", server.url, top_p=0.8, correction_mode=None, max_steps=1)
    run = start(config)
    prompts, checked = run.prompts.take(0, 4), 0
    for shaping in SHAPES:
        weights = run.rollouts.sampler.weights
        sampler = VLLMSampler(
            weights,
            seed=1,
            max_completion_length=12,
            min_completion_length=3,
            shaping=shaping,
            temperature=1.3,
        )
        for group in sampler.sample(prompts, 4):
            for rollout in group.rollouts:
                ids = [*group.prompt.ids, *rollout.completion_ids.tolist()]
                with torch.no_grad(), run.policy.computing():
                    logits = run.policy.model(input_ids=torch.tensor([ids])).logits[0]
                for t, token in enumerate(rollout.completion_ids.tolist()):
                    place = len(group.prompt.ids) + t
                    banned = weights.eos_ids if t < 3 else ()
                    want, clear = reference(logits[place - 1], 1.3, shaping, ids[:place], banned)
                    if clear > 1e-5:  # no cumulated probability is near top_p's cut
                        assert float(rollout.logps[t]) == pytest.approx(float(want[token]), abs=5e-5)
                        checked += 1
    assert checked > 300
    loop(run)
    run.close()
    (row,) = metrics_of(tmp_path / "run")
    assert "sampler_kl" not in row
    assert "loss" not in row or 0.75 < row["sampler/kept_mass"] < 1


@pytest.mark.slow
def test_the_same_task_through_transformers(task, tmp_path):
    """200 rows of GSM8K's columns, a Qwen2 with a BPE tokenizer and a chat template, and a correction that finds nothing."""
    run = start(config_for(task, tmp_path / "run", "", sampler="transformers", max_steps=6))
    assert len(run.prompts) == 200
    loop(run)
    run.close()
    rows = metrics_of(tmp_path / "run")
    assert all(math.isfinite(value) for row in rows for value in row.values())
    live = [row for row in rows if "sampler/ess" in row]
    assert len(live) >= 2
    for row in live:
        assert row["sampler/logp_diff_max"] < 1e-4  # the two forwards differ by rounding alone
        assert row["sampler/ess"] == pytest.approx(1, abs=1e-4)
        assert row["sampler/truncated"] == 0
        assert row["grad_norm"] > 0


@needs_vllm
def test_ten_steps_with_the_accuracy_reward(task, server, tmp_path):
    process = train(config_for(task, tmp_path / "run", server.url))
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 11))
    live = [row for row in rows if "sampler/ess" in row]  # where some group's rewards differ
    assert len(live) >= 3
    for row in live:
        assert row["sampler/logp_diff_max"] < 1e-3  # the weights arrive, and processed log-probs come back
        assert row["sampler/ess"] == pytest.approx(1, abs=1e-3)
        assert row["grad_norm"] > 0
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert "entropy" not in rows[0]  # vLLM doesn't say it, and nothing is made up


@needs_vllm
def test_a_server_that_is_killed_and_started_anew_gets_the_weights_again(task, server, tmp_path):
    run = tmp_path / "run"
    process = train(config_for(task, run, server.url), slowly=True)
    deadline = time.monotonic() + 300
    while not ((run / "metrics.jsonl").exists() and len(metrics_of(run)) >= 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.kill()
    server.start()
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    rows = metrics_of(run)
    assert [row["step"] for row in rows] == list(range(1, 11))
    gaps = {r["step"]: r["sampler/logp_diff_max"] for r in rows if "sampler/logp_diff_max" in r}
    assert max(gaps.values()) < 1e-3  # the weights are never those of its launch directory
    assert max(gaps) > 4  # some are of after the restart
    server.wait()


@needs_vllm
def test_a_tied_head_that_stays_behind_is_found_out(task, tmp_path, capsys):
    """vLLM's CPU build keeps a packed copy of a tied head, which reloading does not reach."""
    running = RunningServer(task / "tied", tmp_path / "server.log")
    try:
        running.wait()
        config = config_for(
            task, tmp_path / "run", running.url, model=str(task / "tied"), learning_rate=1e-2, max_steps=5
        )
        process = train(config, slowly=True)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 2, said
        assert "--vllm_max_gap 0.05: after loading the weights of optimizer step" in said
        assert "tied embeddings" in said
    finally:
        running.kill()


# --------------------------------------------------------------------------- episodes


def episodes_config(task: Path, output: Path, url: str, world: str, **changes) -> TrainConfig:
    settings = {
        "environment": (f"{WORLDS}:{world}",),
        "reward_funcs": (),
        "max_turns": 3,
        "max_turn_length": 24,
        "max_completion_length": 100,
        "correction_mode": "truncate",
    }
    return config_for(task, output, url, **(settings | changes))


@needs_vllm
def test_turns_of_episodes_are_the_servers_tokens_and_log_probs(task, server, tmp_path):
    run = start(episodes_config(task, tmp_path / "run", server.url, "Echo"))
    prompts = run.prompts.take(0, 4)
    groups = run.rollouts.sampler.sample(prompts, 4)
    (alone,) = run.rollouts.sampler.sample(prompts[2:3], 4)
    ids = [[r.completion_ids.tolist() for r in group.rollouts] for group in (groups[2], alone)]
    assert ids[0] == ids[1]
    turns = []
    for rollout in (r for group in groups for r in group.rollouts):
        episode, kept = rollout.episode, rollout.trainable
        turns.append(len(episode.turns))
        places = range(len(rollout.completion_ids))
        assert kept.tolist() == [any(a <= place < b for a, b in episode.turns) for place in places]
        whole = [*episode.prompt_ids, *rollout.completion_ids.tolist()]
        fresh = log_probs_alone(run.policy, whole)[len(episode.prompt_ids) - 1 :]
        torch.testing.assert_close(rollout.logps[kept], fresh[kept].float(), rtol=0, atol=1e-4)
    run.close()
    assert {1, 2, 3} >= set(turns) > {1}


@needs_vllm
def test_a_slow_environment_holds_up_only_its_own_episode(task, server, tmp_path):
    """It answers once all others have ended; in waves it would wait for itself."""
    run = start(episodes_config(task, tmp_path / "run", server.url, "Last"))
    (group,) = run.rollouts.sampler.sample(run.prompts.take(0, 1), 4)
    run.close()
    assert group.rollouts[0].episode.messages[1]["content"] == "3 others have ended"


@needs_vllm
def test_episodes_a_step_ahead(task, server, tmp_path):
    run = start(episodes_config(task, tmp_path / "run", server.url, "Echo", async_depth=1, max_steps=4))
    loop(run)
    run.close()
    rows = metrics_of(tmp_path / "run")
    assert [row["sampler/staleness"] for row in rows] == [0, 1, 1, 1]
    assert rows[0]["sampler/logp_diff_max"] < 1e-3
    assert all(row["turns/max"] > 1 for row in rows)


# --------------------------------------------------------------------------- rewards while it samples


@needs_vllm
@pytest.mark.parametrize("episodes", [False, True], ids=["completions", "episodes"])
def test_groups_are_scored_while_others_are_sampled(task, server, tmp_path, episodes):
    """The function is called for one group each time, and the numbers are those of a run that scores the whole batch."""
    rewards = {"reward_funcs": ("length",), "max_steps": 2, "log_completions": 16, "correction_mode": None}
    make = partial(episodes_config, world="Echo", **rewards) if episodes else partial(config_for, **rewards)
    for name, streams in (("streamed", True), ("plain", False)):
        run = start(make(task, tmp_path / name, server.url, stream_rewards=streams))
        loop(run)
        run.close()
    streamed, plain = (rows(tmp_path / name, "completions.jsonl") for name in ("streamed", "plain"))
    assert [row["completions"] for row in streamed[:4]] == [row["completions"] for row in plain[:4]]
    assert [row["reward"] for row in streamed[:4]] == [row["reward"] for row in plain[:4]]
    assert all(row["time/reward_streamed"] > 0 for row in metrics_of(tmp_path / "streamed"))
    assert all("time/reward_streamed" not in row for row in metrics_of(tmp_path / "plain"))


# --------------------------------------------------------------------------- one step ahead


def ahead_config(task: Path, output: Path, url: str, **changes) -> TrainConfig:
    settings = {"async_depth": 1, "correction_mode": None, "max_steps": 6, "log_completions": 4}
    reward = (f"{REWARDS}:terminates",)
    return config_for(task, output, url, **(settings | {"reward_funcs": reward} | changes))


@needs_vllm
def test_a_step_ahead_is_sampled_while_the_model_trains(task, server, tmp_path, monkeypatch):
    spans: dict[str, list[tuple[float, float]]] = {"ahead": [], "step": []}

    def timed(function, name, due=lambda: True):
        def timing(*arguments, **named):
            began = time.monotonic()
            found = function(*arguments, **named)
            if due():
                spans[name].append((began, time.monotonic()))
            return found

        return timing

    monkeypatch.setattr(
        RolloutsPending,
        "work",
        timed(RolloutsPending.work, "ahead", lambda: threading.current_thread().name == "sampling ahead"),
    )
    monkeypatch.setattr(scoring_room, "score_groups", timed(scoring_room.score_groups, "step"))
    run = start(ahead_config(task, tmp_path / "run", server.url, max_steps=8))
    versions = []
    monkeypatch.setattr(
        StepRollouts,
        "staleness",
        lambda self, groups, version: versions.append(ages(run, groups)) or staleness(self, groups, version),
    )
    loop(run)
    run.close()
    rows = metrics_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert [row["sampler/staleness"] for row in rows] == [0, *[1] * 7]
    assert versions == [{0}, *[{1}] * 7]  # of every completion
    assert rows[0]["sampler/logp_diff_max"] < 1e-3
    for row in rows[1:]:  # by default corrected, so measured
        assert row["sampler/logp_diff_max"] > 1e-3
        assert row["sampler_kl"] > 0
        assert row["sampler/chi2"] != 0
        assert 0 < row["sampler/ess"] < 1
        assert row["grad_norm"] > 0
        assert "sampler/truncated" in row
    # The sampling ahead of a step began before the step before it was scored to its end, and ended after that scoring
    # had begun.
    assert len(spans["ahead"]) == 7
    for (began, ended), (scoring, scored) in zip(spans["ahead"], spans["step"][:-1], strict=True):
        assert began < scored
        assert scoring < ended


staleness = StepRollouts.staleness


def ages(run: Run, groups) -> set[int]:
    return {run.policy.version - rollout.policy_version for group in groups for rollout in group.rollouts}


@pytest.fixture(scope="module")
def a_step_ahead(task, server, tmp_path_factory):
    """A run of six steps that nothing happens to."""
    run = tmp_path_factory.mktemp("ahead") / "run"
    process = train(ahead_config(task, run, server.url, save_steps=2))
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert "note: correction_mode truncate, correction_level token, correction_cap 2: the default" in said
    return run


def completions_of(run: Path) -> dict[int, list[tuple]]:
    """Step → its groups' prompts and completions."""
    found: dict[int, list[tuple]] = {}
    for line in (run / "completions.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["step"], []).append((row["prompt"], row["completions"]))
    return found


@needs_vllm
def test_a_resumed_run_trains_on_what_was_sampled_ahead(task, server, a_step_ahead, tmp_path):
    config = ahead_config(
        task,
        tmp_path / "run",
        server.url,
        max_steps=4,
        resume_from_checkpoint=str(a_step_ahead / "checkpoint-2"),
    )
    said, _ = train(config).communicate(timeout=400)
    rows, completions = metrics_of(tmp_path / "run"), completions_of(tmp_path / "run")
    assert [row["sampler/staleness"] for row in rows] == [1, 1], said
    assert completions[3] == completions_of(a_step_ahead)[3]
    assert completions[4] == completions_of(a_step_ahead)[4]
    for ours, theirs in zip(rows, metrics_of(a_step_ahead)[2:4], strict=True):
        assert ours["sampler/logp_diff_max"] == pytest.approx(theirs["sampler/logp_diff_max"], rel=1e-3)


@needs_vllm
def test_sigterm_stops_the_sampling_ahead_and_the_run_goes_on(
    task, server, a_step_ahead, tmp_path, monkeypatch
):
    """It comes while step 4 is scored and step 5 is sampled: that sampling is lost, and done again."""
    monkeypatch.setitem(ENVIRONMENT, "TERM_AT", "4")
    config = ahead_config(task, tmp_path / "run", server.url)
    process = train(config)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said
    assert "checkpoint-3-update-0" in said
    monkeypatch.delitem(ENVIRONMENT, "TERM_AT")
    from dataclasses import replace

    process = train(replace(config, resume_from_checkpoint="auto"))
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert completions_of(tmp_path / "run") == completions_of(a_step_ahead)
    assert [row["sampler/staleness"] for row in metrics_of(tmp_path / "run")] == [0, *[1] * 5]


@needs_vllm
def test_two_ranks_a_step_ahead(task, server, a_step_ahead, tmp_path):
    from grpokit.config.yaml import to_yaml

    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(ahead_config(task, tmp_path / "run", server.url, max_steps=3, save_steps=1)))
    done = torchrun(2, "-m", "grpokit", "train", "--config", str(file))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [row["sampler/staleness"] for row in metrics_of(tmp_path / "run")] == [0, 1, 1]
    ours, theirs = completions_of(tmp_path / "run"), completions_of(a_step_ahead)
    assert (ours[1], ours[2]) == (theirs[1], theirs[2])  # both of the first weights
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "trainer" / "ahead.safetensors")
    assert saved["position"].tolist() == [8, 9, 10, 11]  # of both ranks


@needs_vllm
@pytest.mark.parametrize("depth", [0, 1])
def test_a_server_that_is_gone_for_good_stops_the_run(task, server, tmp_path, depth):
    """The same message, code and promise, whichever thread was asking."""
    run = tmp_path / "run"
    process = train(ahead_config(task, run, server.url, async_depth=depth, vllm_timeout=20.0), slowly=True)
    deadline = time.monotonic() + 300
    try:
        while not ((run / "metrics.jsonl").exists() and len(metrics_of(run)) >= 2):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.kill()
        said, _ = process.communicate(timeout=120)
        judge = judge_of(server.url, tmp_path, judge_model="any", judge_retries=1)
        with pytest.raises(
            RewardError, match=r"judge_url .*no answer in 2 tries .*while scoring a completion of"
        ):
            score([completions.group("1")], judge)
    finally:
        server.start()
        server.wait()
    assert process.returncode == 2, said
    assert f"--vllm_timeout 20: {server.url} did not serve" in said
    assert "continue with --resume_from_checkpoint auto" in said


class Broken(http.server.BaseHTTPRequestHandler):
    """A server in trouble: every answer is status 500."""

    def do_GET(self) -> None:
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"out of memory")

    def log_message(self, *_: object) -> None:
        pass


def test_a_server_that_answers_500_is_an_error_within_a_moment(tmp_path):
    server = http.server.HTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises(ValueError, match=rf"--vllm_url {url}: no vLLM server answers there \(status 500"):
            Server(url, timeout=3, directory=tmp_path)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_no_server_at_all_is_an_error_that_says_how_to_start_one(tmp_path, capsys):
    from grpokit.config.yaml import to_yaml
    from helpers.tiny import tiny_config

    config = tiny_config(tmp_path, sampler="vllm", vllm_url="http://127.0.0.1:9")
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    said = capsys.readouterr().err
    assert "--vllm_url http://127.0.0.1:9: no vLLM server answers there (ConnectError" in said
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve" in said


def judge_of(url: str, directory: Path, **options):
    """The reward `judge` with a short rubric."""
    (directory / "rubric.txt").write_text("{prompt} {completion} Score: N")
    settings = {"judge_retries": 0, "judge_max_tokens": 8, "judge_rubric": str(directory / "rubric.txt")}
    return completions.load("judge", columns=(), judge_url=url, **(settings | options))


@needs_vllm
def test_the_server_judges(task, server, tmp_path, monkeypatch):
    """A tiny model answers no question with a score, which is counted; what it wrote is shown, and kept in the cache."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    report = Report()
    cached = {"judge_cache": str(tmp_path / "cache")}
    rewards = judge_of(server.url, tmp_path, judge_max_tokens=4, judge_retries=1, **cached)
    groups = [completions.group("1", "2", "x" * 2000)]
    first = score(groups, rewards, report=report)
    counts = {name: metric.value for name, metric in report.metrics.items()}
    assert counts["judge/malformed"] + counts["judge/refusals"] == 2
    assert (counts["judge/too_long"], counts["judge/errors"], counts["judge/cached"]) == (1, 0, 0)
    assert first[0].extras["judge"][0] != ""
    again = Report()
    assert score(groups, rewards, report=again)[0].extras == first[0].extras
    assert again.metrics["judge/cached"].value == 3


@needs_vllm
def test_scores_time_outs_and_refusals_of_a_server_that_judges(task, server, tmp_path, monkeypatch):
    """The server gets the weights of a model that answers everything with "Score: 7"."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config = config_for(task, tmp_path / "run", server.url, model=str(make_judge(task, tmp_path / "judge")))
    run = start(config)
    run.rollouts.sampler.sample(run.prompts.take(0, 1), 1)  # loads the weights
    run.close()
    groups, report = [completions.group("1", "2"), completions.group("3", line=2)], Report()
    cached = {"judge_cache": str(tmp_path / "cache")}
    scored = score(groups, judge_of(server.url, tmp_path, **cached), report=report, by_group=True)
    assert [group.reward.tolist() for group in scored] == [[0.7, 0.7], [0.7]]
    assert scored[0].extras["judge"] == ["Score: 7"] * 2
    assert {name: metric.value for name, metric in report.metrics.items()} == dict.fromkeys(
        ("judge/errors", "judge/malformed", "judge/refusals", "judge/too_long", "judge/cached"), 0
    )
    with pytest.raises(RewardError, match=r"--judge_url .*no answer in 1 tries \(none within 0\.001 seconds"):
        score(groups, judge_of(server.url, tmp_path, judge_timeout=0.001))
    with pytest.raises(RewardError, match=r"--judge_url .*refuses the request \(status 404"):
        score(groups, judge_of(server.url, tmp_path, judge_model="another"))
    # The cache needs no server, and has no answer to a question that was not asked.
    away = judge_of(server.url, tmp_path, judge_model=str(task / "model"), **cached)
    monkeypatch.setattr(away[0].fn.endpoint.__class__, "address", "http://127.0.0.1:9/v1")
    assert [group.reward.tolist() for group in score(groups, away)] == [[0.7, 0.7], [0.7]]
    with pytest.raises(RewardError, match="no answer in 1 tries"):
        score([completions.group("4")], away)


@needs_vllm
def test_the_server_teaches(task, server, tmp_path):
    """With the policy's own weights on the server, its log-probs are the policy's, and the KL to it is 0."""
    config = config_for(
        task,
        tmp_path / "run",
        server.url,
        temperature=1.0,
        reward_funcs=(),
        correction_mode="none",
        teacher=(server.url,),
        max_steps=2,
        learning_rate=1e-2,
    )
    run = start(config)
    for step in iter_steps(run):
        row = step.metrics
        own = run.teachers.by_name[""]
        samples = unweighted(step.groups)
        told = own.score(samples)
        assert {s.index: len(told[s.index]) for s in samples} == {s.index: s.length for s in samples}
        if step.step == 1:  # the server has the weights that the step began with
            assert abs(row["teacher/kl"]) < 1e-3
            assert row["loss/policy"] == 0
    run.close()
    with pytest.raises(ValueError, match=r"--teacher .*has a context of 256 tokens"):
        own.check(run.tokenizer, 256)
    with pytest.raises(ValueError, match=r"--teacher .*its tokenizer is another one"):
        own.check(chat_tokenizer("qwen"), 64)
    with pytest.raises(ValueError, match=r"--teacher .*refused"):
        own.score([dataclasses.replace(samples[0], prompt_ids=samples[0].prompt_ids * 100)])
