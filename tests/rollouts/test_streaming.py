"""--stream_rewards: groups are scored while others are sampled, with the same numbers, errors and checkpoints."""

from __future__ import annotations

import asyncio
import random
import signal
import threading

import pytest

from grpokit import GRPOTrainer
from grpokit.commands.cli import main
from grpokit.config.checks import check_train_config
from grpokit.config.yaml import to_yaml
from grpokit.rewards import Report, Reward, RewardError, score
from grpokit.rollouts.pending import RolloutsPending
from grpokit.rollouts.sampler import SamplingStopped
from grpokit.types import Prompt
from helpers.completions import group, load, two
from helpers.elsewhere import wait_until
from helpers.judging import FakeEndpoint, chat_answer
from helpers.launch import rows, torchrun
from helpers.places import REWARDS
from helpers.stops import STOPPED, in_update, same_bytes, stop_when
from helpers.tiny import ROWS, group_of, tiny_config

pytestmark = pytest.mark.usefixtures("engine")


def streaming(directory, **changes) -> list[str]:
    """The command of a run; its last argument, the output directory, is missing."""
    settings = {"sampler": "vllm", "stream_rewards": True, "max_steps": 2, "num_iterations": 1}
    (directory / "run.yaml").write_text(to_yaml(tiny_config(directory, **(settings | changes))))
    return ["train", "--config", str(directory / "run.yaml"), "--output_dir"]


def sampled(engine) -> list[int]:
    """The positions of the prompts that the engine has sampled."""
    return [entry[1] for entry in engine.diary if entry[0] == "sampled"]


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("estimator", ["group", "remax"])
def test_the_same_bytes_as_without_it(tmp_path, estimator):
    """remax scores the greedy completions after all others."""
    changes = {"max_resample_times": 1, "log_completions": 16, "advantage_estimator": estimator}
    for name, streams in (("streamed", True), ("plain", False)):
        command = streaming(tmp_path, **changes, stream_rewards=streams)
        assert main([*command, str(tmp_path / name)]) == 0
    same_bytes(tmp_path / "streamed", tmp_path / "plain")


def test_functions_get_one_whole_group_in_the_order_of_the_prompts(engine, tmp_path):
    """Though the engine ends each second group before the first."""
    called = []

    def mine(completions, answer):
        called.append(answer)
        return [float(len(text)) for text in completions]

    config = tiny_config(tmp_path, sampler="vllm", stream_rewards=True, max_steps=1)
    trainer = GRPOTrainer(model=config.model, reward_funcs=mine, args=config, train_dataset=ROWS)
    (step,) = trainer.steps()
    assert sampled(engine) == [1, 0, 3, 2]
    assert called == [[group.prompt.columns["answer"]] * 4 for group in step.groups]


def test_a_group_is_scored_while_the_next_ones_are_sampled_on_the_main_thread(engine, tmp_path):
    """The engine waits for the reward of the first two prompts before it samples the others."""
    scored = threading.Event()

    def until_scored(sampler, background):
        assert background
        if len(sampled(engine)) == 2:
            assert scored.wait(60)

    def mine(completions, **kwargs):
        assert threading.current_thread() is threading.main_thread()
        scored.set()
        return [float(len(text)) for text in completions]

    engine.before.append(until_scored)
    config = tiny_config(tmp_path, sampler="vllm", stream_rewards=True, max_steps=1)
    trainer = GRPOTrainer(model=config.model, reward_funcs=mine, args=config, train_dataset=ROWS)
    trainer.train()
    row = trainer.history[0]
    assert row["time/reward_streamed"] > 0
    assert not [thread for thread in threading.enumerate() if thread.name == "sampling"]


def test_what_functions_log_is_the_same_as_of_groups_that_are_scored_together():
    def mine(completions, log_metric, log_count, log_extra):
        log_metric("m", len(completions))
        log_count("n", len(completions))
        log_extra("text", completions)
        return [0.5] * len(completions)

    reports = Report(), Report()
    together = score(two(), [Reward("mine", mine)], report=reports[0])
    apart = score(two(), [Reward("mine", mine)], report=reports[1], by_group=True)
    assert [g.extras for g in apart] == [g.extras for g in together]
    assert [g.rewards.tolist() for g in apart] == [g.rewards.tolist() for g in together]
    assert [r.metrics["n"].value for r in reports] == [3, 3]
    assert [r.metrics["m"].value for r in reports] == pytest.approx([3, 5 / 3])  # over completions


@pytest.mark.slow
def test_two_ranks_train_the_same_weights(tmp_path):
    streaming(tmp_path, reward_funcs=(f"{REWARDS}:digits_in_order", "length"), max_resample_times=1)
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path / "one")]) == 0
    two_ranks = torchrun(2, "-m", "helpers.elsewhere", str(tmp_path / "run.yaml"), str(tmp_path / "two"))
    assert two_ranks.returncode == 0, two_ranks.stderr
    for ours, theirs in zip(
        rows(tmp_path / "two", "metrics.jsonl"), rows(tmp_path / "one", "metrics.jsonl"), strict=True
    ):
        assert ours["reward"] == theirs["reward"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-10)


# --------------------------------------------------------------------------- several groups at once


def test_async_functions_of_groups_that_wait_run_together():
    running, most = 0, 0

    async def slow(completions, **kwargs):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return [1.0] * len(completions)

    score([*two(), *two()], [Reward("slow", slow)], by_group=True)
    assert most == 4


def test_requests_to_the_judge_stay_bounded_over_all_groups(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def slowly(body, count):
        threading.Event().wait(0.05)
        return chat_answer("Score: 5")

    server = FakeEndpoint(slowly)
    try:
        limits = {"judge_url": server.url, "judge_concurrency": 3, "judge_model": "m"}
        command = streaming(tmp_path, reward_funcs=("judge",), max_steps=1, **limits)
        assert main([*command, str(tmp_path / "run")]) == 0
    finally:
        server.close()
    assert 1 < server.most <= 3


def test_the_row_of_an_async_failure_is_that_of_its_own_group(tmp_path):
    (tmp_path / "verl.py").write_text(
        "import asyncio\n\n"
        "async def compute_score(solution_str, ground_truth):\n"
        "    await asyncio.sleep(0.01 * (ground_truth == 'b'))\n"
        "    return 1.0 if ground_truth == 'a' else {}[solution_str]\n"
    )
    rewards = load(f"{tmp_path / 'verl.py'}:compute_score")
    first, second = group("1", "2", "3", answer="a"), group("4", line=2, answer="b")
    with pytest.raises(
        RewardError, match=r"raised KeyError: '4' \(while scoring a completion of t\.jsonl:2\)"
    ):
        score([first, second], rewards, by_group=True)


# --------------------------------------------------------------------------- errors, stops, resume


def test_an_error_ends_the_sampling_and_is_told_as_without_it(engine, tmp_path, capsys):
    fails = {"reward_funcs": (f"{REWARDS}:raises",), "max_steps": 1}
    assert main([*streaming(tmp_path, stream_rewards=False, **fails), str(tmp_path / "plain")]) == 2
    plain = capsys.readouterr().err
    engine.diary.clear()

    def until_given_up(sampler, background):
        if sampled(engine) == [1, 0]:
            wait_until(lambda: sampler.progress.given_up)

    engine.before.append(until_given_up)
    assert main([*streaming(tmp_path, **fails), str(tmp_path / "streamed")]) == 2
    said = capsys.readouterr().err
    assert "reward function `raises` raised KeyError: 'no such thing'" in said
    told, as_before = (text[text.index("error:") :].partition("(while")[0] for text in (said, plain))
    assert told == as_before
    assert sampled(engine) == [1, 0]  # and the other groups are not sampled


def test_an_error_that_comes_with_a_stop_is_written_and_said(engine, tmp_path, capsys):
    function = tmp_path / "stops.py"
    function.write_text(
        "import signal\n\ndef stops(completions):\n"
        "    signal.raise_signal(signal.SIGTERM)\n    raise KeyError('no such thing')\n"
    )
    command = streaming(tmp_path, reward_funcs=(f"{function}:stops",), max_steps=1)
    assert main([*command, str(tmp_path / "run")]) == STOPPED
    said = capsys.readouterr().out
    assert "reward function `stops` raised KeyError: 'no such thing'" in said
    assert "KeyError: 'no such thing'" in (tmp_path / "run" / "error.txt").read_text()


@pytest.mark.parametrize("when", ["while it samples", "while it learns"])
def test_a_run_that_is_stopped_is_resumed_to_the_byte(engine, tmp_path, monkeypatch, when):
    """With a function that draws random numbers: it is called in the same order again, from the same random state."""
    command = streaming(tmp_path, reward_funcs=(f"{REWARDS}:noted",), max_steps=3)
    random.seed(0)
    assert main([*command, str(tmp_path / "expected")]) == 0
    engine.diary.clear()
    if when == "while it learns":
        stop_when(monkeypatch, in_update(0, step=1))
    else:

        def interrupt(sampler, background):
            if len(sampled(engine)) == 6:
                signal.raise_signal(signal.SIGTERM)

        engine.before.append(interrupt)
    random.seed(0)
    assert main([*command, str(tmp_path / "run")]) == STOPPED
    monkeypatch.undo()
    engine.before.clear()
    monkeypatch.setattr("grpokit.training.setup.start.sampler_factory", engine.samplers)
    assert main([*command, str(tmp_path / "run"), "--resume_from_checkpoint", "auto"]) == 0
    same_bytes(tmp_path / "run", tmp_path / "expected")


def test_groups_that_are_sampled_are_handed_over_once_and_the_rest_is_given_up():
    prompts = [Prompt(position, (1,), "p", {}, "t:1") for position in range(3)]
    rollout = group_of([1.0]).rollouts[0]

    def sample(progress):
        for number in (1, 0, 3, 2):
            progress.ended(number, rollout)
        wait_until(lambda: progress.given_up)
        raise SamplingStopped("given up")

    seen = []

    def take(groups):
        seen.extend(group.prompt.position for group in groups)
        return len(seen) < 2

    assert RolloutsPending(prompts, 2, sample).streamed(take) == []
    assert seen == [0, 1]


def test_a_sampling_thread_never_ends_in_silence():
    def sample(progress):
        progress.ended(0, group_of([1.0]).rollouts[0])
        raise SystemExit(3)

    pending = RolloutsPending([Prompt(0, (1,), "p", {}, "t:1")], 1, sample)
    with pytest.raises(RuntimeError, match="sampling ended by SystemExit: 3"):
        pending.streamed(lambda groups: True)


def test_an_async_failure_gives_up_the_other_groups(tmp_path):
    ended = []

    async def judged(completions, **kwargs):
        if completions == ["c"]:
            raise KeyError("gone")
        await asyncio.sleep(30)
        ended.append(completions)
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match="raised KeyError: 'gone'"):
        score([*two(), *two()], [Reward("judged", judged)], by_group=True)
    assert ended == []


def test_a_name_that_is_logged_in_two_ways_by_two_groups_is_refused():
    def mine(completions, log_metric, log_count):
        (log_metric if completions == ["c"] else log_count)("x", 1)
        return [1.0] * len(completions)

    with pytest.raises(RewardError, match="logged 'x' by log_metric and by log_count"):
        score(two(), [Reward("mine", mine)], by_group=True)


def test_a_function_that_hangs_is_interrupted(tmp_path, capsys):
    hangs = tmp_path / "hangs.py"
    hangs.write_text("import time\n\ndef hangs(completions):\n    time.sleep(600)\n")
    command = streaming(tmp_path, reward_funcs=(f"{hangs}:hangs",), max_steps=1, reward_timeout=0.5)
    assert main([*command, str(tmp_path / "run")]) == 2
    assert "took longer than --reward_timeout 0.5 seconds" in capsys.readouterr().err


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "transformers"}, "--stream_rewards: needs an engine that samples on its own"),
        ({"async_depth": 1}, "--stream_rewards: with --async_depth 1"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tmp_path, changes, message):
    config = tiny_config(tmp_path, **({"sampler": "vllm", "stream_rewards": True} | changes))
    with pytest.raises(ValueError, match=message):
        check_train_config(config)
