"""The rules of advice: each with a run that shows what it is about, and one that doesn't."""

from __future__ import annotations

import json
import random
import re

import pytest

from grpokit.runs.advice import GUIDE, RULES, Adviser, advise
from helpers.places import ROOT
from helpers.synthetic_runs import make_run, metrics_row, report, write_lines

HEALTHY = {
    "reward": 0.5,
    "reward_std": 0.4,
    "frac_reward_zero_std": 0.2,
    "completions/clipped_ratio": 0.01,
    "completions/mean_length": 100.0,
    "entropy": 1.0,
    "clip_ratio/region_mean": 0.01,
    "sampler_kl": 1e-5,
    "kl": 0.01,
    "reward/length_correlation": 0.0,
    "grad_norm": 1.0,
    "skipped_updates": 0.0,
    "time/step": 2.0,
    "time/rollout": 1.0,
    "time/learn": 0.9,
}


def series(steps: int = 40, **changes) -> list[dict]:
    """Rows of a run: `changes` are values, or functions of the step (with __ for /)."""
    named = {name.replace("__", "/"): value for name, value in changes.items()}
    wobble = [0.02, -0.02, 0.01, -0.01, 0.0]
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, **HEALTHY, **{n: v(step) if callable(v) else v for n, v in named.items()}}
        rows.append(row | {"reward": row["reward"] + wobble[step % 5]})
    return rows


def rising(step: int) -> float:
    return 0.2 + 0.015 * step


def falling(step: int) -> float:
    return 1.0 if step <= 10 else max(0.02, 1.0 - 0.1 * (step - 10))


def longer(step: int) -> float:
    return 100.0 + 5 * step


def late(value: float, before: float, at: int = 20):
    return lambda step: value if step > at else before


def with_evaluations(reward):
    """A run whose training reward rises, evaluated every fourth step."""
    return [
        row | ({"eval/reward": reward(row["step"])} if row["step"] % 4 == 0 else {})
        for row in series(reward=rising)
    ]


SHOWN = {
    "groups_without_spread": (series(frac_reward_zero_std=0.9), {}),
    "truncation": (series(completions__clipped_ratio=0.4), {"max_completion_length": 128}),
    "entropy_collapse": (series(entropy=falling), {}),
    "length_drift": (series(completions__mean_length=lambda s: 100.0 + 8 * s), {}),
    "clip_share": (series(clip_ratio__region_mean=0.35), {}),
    "sampler_mismatch": (series(sampler_kl=0.05), {}),
    "kl_growth": (series(kl=lambda s: 0.04 * s), {}),
    "length_hacking": (
        series(reward=rising, reward__length_correlation=0.8, completions__mean_length=longer),
        {},
    ),
    "learning_rate_high": (series(reward=late(0.1, 0.6), grad_norm=late(9.0, 1.0)), {"learning_rate": 1e-3}),
    "reward_falls": (series(reward=late(0.1, 0.6), entropy=late(4.0, 0.5)), {"learning_rate": 1e-3}),
    "learning_rate_low": (series(220), {"learning_rate": 1e-9}),
    "held_out_falls": (with_evaluations(lambda step: 0.8 - 0.01 * step), {}),
    "unscored": (series(reward__unscored=0.7), {}),
    "slow_step": ([*series(39), {**series(1)[0], "step": 40, "time/step": 60.0, "time/rollout": 55.0}], {}),
}
# The same figure where it is no sign of trouble.
NOT_SHOWN = {
    "groups_without_spread": (
        series(frac_reward_zero_std=0.9),
        {"advantage_estimator": "reinforce_plus_plus"},
    ),
    "truncation": (series(completions__clipped_ratio=0.05), {}),
    "entropy_collapse": (series(entropy=falling, reward=rising), {}),
    "length_drift": (series(completions__mean_length=lambda s: 100.0 + 8 * s, reward=rising), {}),
    "clip_share": (series(clip_ratio__region_mean=0.2), {}),
    "sampler_mismatch": (series(sampler_kl=0.002), {}),
    "kl_growth": (series(kl=lambda s: 0.004 * s), {}),
    "length_hacking": (series(reward=rising, reward__length_correlation=0.8), {}),
    "learning_rate_high": (series(reward=late(0.1, 0.6)), {}),
    "reward_falls": (series(reward=late(0.55, 0.6)), {}),
    "learning_rate_low": (series(220, reward=lambda s: 0.2 + 0.001 * s), {}),
    "held_out_falls": (with_evaluations(lambda step: 0.5 + 0.005 * step), {}),
    "unscored": (series(reward__unscored=0.1), {}),
    "slow_step": ([*series(39), {**series(1)[0], "step": 40, "time/step": 6.0, "time/rollout": 5.0}], {}),
}


def rules(rows, config=None):
    return {found.rule for found in advise(rows, (), config)}


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_shows_it_gets_the_advice(rule):
    rows, config = SHOWN[rule]
    assert rule in rules(rows, config)


@pytest.mark.parametrize("rule", RULES)
def test_a_run_that_does_not_show_it_gets_no_such_advice(rule):
    rows, config = NOT_SHOWN[rule]
    assert rule not in rules(rows, config)


def test_a_healthy_run_gets_no_advice_at_all():
    assert rules(series(reward=rising)) == set()
    assert advise([]) == []
    assert advise([{"step": 1}, {"step": 2, "reward": None}]) == []


def test_a_run_that_has_solved_its_task_is_not_said_to_have_collapsed():
    rows = series(entropy=falling, frac_reward_zero_std=lambda s: 0.2 if s < 15 else 0.95, reward=0.99)
    assert "entropy_collapse" not in rules(rows)


@pytest.mark.parametrize("rule", RULES)
def test_advice_has_a_figure_and_a_section_of_the_guide(rule):
    found = next(each for each in advise(SHOWN[rule][0], (), SHOWN[rule][1]) if each.rule == rule)
    assert re.search(r"\d", found.text)
    assert found.text[0].islower() or found.text[0].isdigit()
    page, _, section = found.guide.partition("#")
    for language in ("en", "zh"):
        assert (ROOT / "docs" / language / page).is_file()
    headings = re.findall(r"^#{2,3} (.*)$", (ROOT / "docs" / "en" / page).read_text(encoding="utf-8"), re.M)
    assert section in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_advice_is_given_once_and_keeps_its_first_step():
    adviser = Adviser({})
    given = [new for row in series(30, completions__clipped_ratio=0.4) for new in adviser.add(row)]
    assert [(new.rule, new.step) for new in given] == [("truncation", 10)]


def test_advice_says_whether_it_still_holds_and_shows_the_last_figure():
    rows = series(30, completions__clipped_ratio=lambda s: 0.3 if s <= 10 else 0.5 if s <= 15 else 0.0)
    [found] = [each for each in advise(rows) if each.rule == "truncation"]
    assert found.step == 10
    assert not found.now
    # four of the ten steps up to step 21 have a half: exactly the fifth that the rule asks for, and the last time
    assert found.text.startswith("20%")


def test_what_holds_now_comes_first():
    rows = series(
        40, completions__clipped_ratio=lambda s: 0.4 if s <= 12 else 0.0, sampler_kl=late(0.05, 0.0)
    )
    assert [(each.rule, each.now) for each in advise(rows)][:2] == [
        ("sampler_mismatch", True),
        ("truncation", False),
    ]


def test_rows_seen_one_by_one_and_all_at_once_give_the_same():
    rows = series(40, completions__clipped_ratio=0.4, frac_reward_zero_std=0.9)
    adviser = Adviser({})
    for row in rows:
        adviser.add(row)
    assert set(advise(rows)) == set(adviser.found.values())


def test_the_report_lists_the_advice(tmp_path):
    run = make_run(tmp_path / "run", steps=20)
    assert "<h2>Advice</h2>" not in report(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(run / "metrics.jsonl", [row | {"completions/clipped_ratio": 0.5} for row in rows])
    page = report(run)
    assert "<h2>Advice</h2>" in page
    assert "50% of the completions of the last 10 steps were cut off" in page
    assert f"docs/en/{GUIDE}#answers-are-cut-off" in page


def noisy(rng, steps, reward, noise=0.02, **others):
    """A run as real ones are: each step's reward is a mean over few prompts, and every tenth step is evaluated on 100."""
    rows = []
    for step in range(1, steps + 1):
        true = reward(step / steps)
        row = {"step": step, **HEALTHY, "reward": true + rng.gauss(0, noise)}
        row |= {
            name.replace("__", "/"): curve(step / steps) * (1 + rng.gauss(0, 0.03))
            for name, curve in others.items()
        }
        if step % 10 == 0:
            row["eval/reward"] = sum(rng.random() < true for _ in range(100)) / 100
        rows.append(row)
    return rows


RUNS = 12
HEALTHY_RUNS = {
    "a plateau": {"reward": lambda x: 0.6},
    "a slow rise": {"reward": lambda x: 0.3 + 0.3 * x},
    "a rise and a plateau": {"reward": lambda x: 0.3 + 0.4 * min(1.0, 3 * x)},
    "a slow rise with longer answers and less entropy": {
        "reward": lambda x: 0.3 + 0.3 * x,
        "completions__mean_length": lambda x: 500 + 1000 * x,
        "entropy": lambda x: 0.4 - 0.37 * x,
    },
}
BROKEN_RUNS = {
    "a slow collapse": (
        {"reward": lambda x: 0.6 if x < 0.4 else 0.6 - 0.5 * (x - 0.4) / 0.6},
        "reward_falls",
    ),
    "a sudden collapse into noise": (
        {"reward": lambda x: 0.6 if x < 0.5 else 0.02, "entropy": lambda x: 0.3 if x < 0.5 else 5.0},
        "reward_falls",
    ),
    "answers that grow for nothing": (
        {"reward": lambda x: 0.5, "completions__mean_length": lambda x: 200 + 800 * x},
        "length_drift",
    ),
}


@pytest.mark.parametrize("kind", HEALTHY_RUNS)
def test_a_noisy_run_that_is_well_seldom_gets_a_warning(kind):
    rng = random.Random(kind)
    said = [rules(noisy(rng, 400, **HEALTHY_RUNS[kind])) - {"learning_rate_low"} for _ in range(RUNS)]
    assert sum(bool(found) for found in said) <= 1, said


def test_a_run_that_rises_slowly_is_not_said_to_stand_still():
    rng = random.Random(0)
    said = [rules(noisy(rng, 400, reward=lambda x: 0.4 + 0.2 * x)) for _ in range(RUNS)]
    assert sum("learning_rate_low" in found for found in said) <= 1


@pytest.mark.parametrize("kind", BROKEN_RUNS)
def test_a_noisy_run_that_is_broken_nearly_always_gets_the_advice(kind):
    rng, (curves, rule) = random.Random(kind), BROKEN_RUNS[kind]
    said = [rules(noisy(rng, 400, **curves)) for _ in range(RUNS)]
    assert sum(rule in found for found in said) >= RUNS - 1


def test_flags_that_are_set_already_are_not_recommended():
    [found] = advise(series(20, completions__clipped_ratio=0.4), (), {"mask_truncated_completions": True})
    assert "--mask_truncated_completions" not in found.text
    [found] = advise(series(20, frac_reward_zero_std=0.9), (), {"max_resample_times": 3})
    assert "--max_resample_times" not in found.text


def test_the_synthetic_run_of_the_reports_is_healthy():
    rng = random.Random(0)
    assert rules([metrics_row(step, 60, "grpo", rng) for step in range(1, 61)]) == set()
