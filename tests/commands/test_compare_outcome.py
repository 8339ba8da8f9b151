"""What runs say together: their scores, what is said of them, mistakes, and the page."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import grpokit
from grpokit.commands.cli import main
from grpokit.commands.compare.outcome import compare_runs
from grpokit.commands.compare.page import render_page
from grpokit.commands.compare.strips import Scale
from grpokit.commands.compare.summary import caution, show_seeds, verdict
from grpokit.losses import LOSSES
from helpers.browser import browser, page_of
from helpers.compared import make_planted_run, make_planted_runs
from helpers.synthetic_runs import EVIL


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Three losses over five seeds; each scores 0.06 more than the one before."""
    folder = tmp_path_factory.mktemp("planted")
    make_planted_runs(folder, ["grpo", "dapo", "sapo"], gap=0.06)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """All losses over three seeds."""
    folder = tmp_path_factory.mktemp("many")
    make_planted_runs(folder, list(LOSSES), seeds=3, gap=0.01)
    return folder


# --------------------------------------------------------------------------- scores


def test_runs_are_grouped_by_their_options_and_scored_at_the_last_evaluation(planted):
    outcome = compare_runs([planted])
    assert [variant.label for variant in outcome.variants] == ["dapo", "grpo", "sapo"]
    assert outcome.settings == {"loss_type": ("dapo", "grpo", "sapo")}
    assert outcome.metric == "eval/reward"
    assert outcome.scored == "eval/reward at the last evaluation, step 20"
    for variant in outcome.variants:
        for seed in range(1, 6):
            lines = (planted / variant.label / f"seed-{seed}" / "evaluations.jsonl").read_text().splitlines()
            assert outcome.scores[variant.label][seed] == json.loads(lines[-1])["eval/reward"]


def test_a_metric_of_training_is_its_mean_over_the_last_tenth(planted):
    outcome = compare_runs([planted], metric="reward")
    lines = (planted / "grpo" / "seed-2" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line)["reward"] for line in lines[-2:]]
    assert outcome.scores["grpo"][2] == pytest.approx(np.mean(last))
    assert outcome.scored == "mean reward over the last 2 steps"


def test_runs_without_evaluations_are_compared_by_their_reward(tmp_path):
    paths = [make_planted_run(tmp_path / f"r{seed}", seed, 0.5) for seed in (1, 2)]
    for path in paths:
        (path / "evaluations.jsonl").unlink()
    assert compare_runs(paths).metric == "reward"


def test_python_has_the_comparison_too(planted):
    outcome = grpokit.compare_runs([planted], baseline="grpo", alpha=0.1)
    assert {pair.second for pair in outcome.statistics.pairs} == {"grpo"}
    assert outcome.statistics.alpha == 0.1


def test_several_options_name_a_variant(tmp_path):
    make_planted_run(tmp_path / "a", 1, 0.5, loss_type="grpo", beta=0.1)
    make_planted_run(tmp_path / "b", 1, 0.5, loss_type="dapo", stop=("x",))
    outcome = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert [variant.label for variant in outcome.variants] == [
        "stop=none,loss_type=grpo,beta=0.1",
        "stop=x,loss_type=dapo,beta=0.0",
    ]


def test_a_seed_twice_and_other_mistakes(planted, tmp_path):
    run = planted / "grpo" / "seed-1"
    twice = make_planted_run(tmp_path / "again", 1, 0.5, loss_type="grpo")
    with pytest.raises(
        ValueError, match=re.escape(f"{run} and {twice} are the same variant with the same seed, 1")
    ):
        compare_runs([run, twice])
    with pytest.raises(ValueError, match=r"--metric eval/rewrd: .* \(did you mean 'eval/reward'\?\)"):
        compare_runs([planted], metric="eval/rewrd")
    with pytest.raises(ValueError, match=r"--baseline gpro: no such variant \(did you mean 'grpo'\?\)"):
        compare_runs([planted], baseline="gpro")
    with pytest.raises(ValueError, match="no such directory"):
        compare_runs([tmp_path / "nowhere"])


def test_unfinished_runs_are_said_and_left_out(tmp_path):
    make_planted_run(tmp_path / "a", 1, 0.5)
    path = make_planted_run(tmp_path / "b", 2, 0.5)
    (path / "final").rmdir()
    outcome = compare_runs([tmp_path])
    assert outcome.left_out == (f"{path}: not finished (step 20)",)
    assert [variant.seeds for variant in outcome.variants] == [(1,)]
    with pytest.raises(ValueError, match="none of them is finished"):
        compare_runs([path])


# --------------------------------------------------------------------------- what is said


def test_a_run_that_has_just_begun_is_left_out(tmp_path):
    paths = make_planted_runs(tmp_path, ["grpo", "dapo"], seeds=2)
    begun = make_planted_run(tmp_path / "grpo" / "seed-3", 3, 0.5, loss_type="grpo")
    (begun / "metrics.jsonl").write_text("")
    (begun / "final").rmdir()
    outcome = compare_runs([*paths, begun])
    assert len(outcome.left_out) == 1
    assert "seed-3" in outcome.left_out[0]


def test_one_directory_may_be_given_as_a_string(planted):
    assert len(compare_runs(str(planted)).variants) == len(compare_runs([planted]).variants)


def test_where_runs_are_served_and_judged_is_no_difference_between_variants(tmp_path):
    for seed in (1, 2):
        make_planted_run(
            tmp_path / f"run-{seed}", seed, 0.5, judge_url=f"http://127.0.0.1:{seed}", ddp_timeout=float(seed)
        )
    [variant] = compare_runs([tmp_path]).variants
    assert variant.seeds == (1, 2)


def test_how_runs_are_evaluated_is_one(tmp_path):
    for seed in (1, 2):
        make_planted_run(tmp_path / f"run-{seed}", seed, 0.5, eval_temperature=float(seed))
    assert len(compare_runs([tmp_path]).variants) == 2


def test_with_a_baseline_every_difference_is_to_it(planted):
    outcome = compare_runs([planted], baseline="dapo")
    page = render_page(outcome)
    assert "dapo − " not in page
    assert " − dapo" in page


def test_the_paragraph_names_what_differs_and_its_figures(planted):
    outcome = compare_runs([planted])
    pair = next(p for p in outcome.statistics.pairs if (p.first, p.second) == ("grpo", "sapo"))
    said = verdict(outcome)
    assert said.startswith("At the 5 % level over 3 comparisons of 5 seeds: sapo is better than grpo by ")
    assert f"{-pair.difference:.3f} ({-pair.high:.3f} to {-pair.low:.3f})" in said
    assert "can't be told apart" not in said
    assert "10 % at 5" in caution(outcome)


def test_where_nothing_can_be_told_it_says_so_first(tmp_path):
    make_planted_runs(tmp_path / "same", ["grpo", "dapo"], gap=0.0)
    outcome = compare_runs([tmp_path / "same"])
    difference, needed = next((d, n) for d, n in outcome.statistics.needed if n > 5)
    assert verdict(outcome) == (
        "Nothing can be told apart at the 5 % level over 1 comparison of 5 seeds. "
        f"To tell a difference of {difference:.3f} apart, about {show_seeds(needed)} seeds would be needed."
    )
    one = compare_runs([tmp_path / "same" / name / "seed-1" for name in ("grpo", "dapo")])
    assert verdict(one).startswith(
        "Nothing can be told apart: a test needs two seeds that both variants have"
    )
    uneven = compare_runs(
        [tmp_path / "same", make_planted_run(tmp_path / "lone" / "seed-1", 1, 0.5, loss_type="cispo")]
    )
    assert verdict(uneven).startswith(
        "Nothing can be told apart at the 5 % level over 1 comparison of 5 seeds. To tell"
    )
    assert "10 % at 5" in caution(uneven)
    alone = compare_runs([tmp_path / "same" / "grpo"])
    assert verdict(alone) == "Nothing can be told apart: there is only one variant with a finished run."


def test_more_of_a_metric_that_is_no_gain_is_higher_and_not_better(planted):
    outcome = compare_runs([planted], metric="eval/reward")
    assert "better" in verdict(outcome)
    worse = compare_runs([planted], metric="entropy")
    assert "better" not in verdict(worse)


def test_the_command_prints_the_paragraph_and_writes_the_page(planted, tmp_path, capsys):
    page = tmp_path / "deep" / "page.html"
    assert main(["compare", "--runs", str(planted), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert "At the 5 % level over 3 comparisons" in said
    assert str(page) in said.replace("\n", "")
    assert page.read_text().count("<svg") == 4  # two curves, each for wide and narrow pages
    assert main(["compare", "--runs", str(planted), "--vary", "beta=0,1"]) == 2
    assert "--vary beta=0,1: belongs to a comparison that trains" in capsys.readouterr().err
    assert main(["compare", "--runs", str(planted), "--output", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


# --------------------------------------------------------------------------- the page


def test_the_axis_has_round_marks_and_holds_every_value():
    scale = Scale([0.812, 0.871])
    assert scale.marks == [0.82, 0.83, 0.84, 0.85, 0.86, 0.87]
    assert 0 < scale.place(0.812) < scale.place(0.871) < 100
    assert Scale([3.0, 3.0]).place(3.0) == 50.0
    assert Scale([]).marks


def test_the_page_has_every_part_and_its_figures(planted):
    outcome = compare_runs([planted])
    page = render_page(outcome)
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Final performance",
        "Differences between variants",
        "How many seeds would tell",
        "Curves",
        "How they trained",
        "Settings that differ",
        "How to read this",
    ]
    for single in outcome.statistics.singles:
        assert f"{single.middle:.3f}" in page
        assert f"{single.low:.3f} to {single.high:.3f}" in page
    for pair in outcome.statistics.pairs:
        assert f"{abs(pair.difference):.3f}" in page
    for heading in ("gate, mean", "tokens clipped", "effective sample size", "entropy, nats per token"):
        assert heading in page
    assert "2,000" in page  # tokens of a run: 100 a step
    assert "8 s" in page  # 20 steps of 0.4 s


def test_the_same_runs_give_the_same_page(planted):
    assert render_page(compare_runs([planted])) == render_page(compare_runs([planted]))


def test_many_variants_get_a_matrix_and_small_plots(many):
    page = render_page(compare_runs([many]))
    assert page.count('<figure class="plot"') == 2 * len(LOSSES)
    assert len(re.findall(r'<td class="(?:up|down|none|)" title', page)) == len(LOSSES) ** 2
    assert "All 210 pairs in figures" in page
    assert len(page) < 800_000


def test_hostile_names_stay_text(tmp_path):
    for name, score in (("a", 0.5), (EVIL, 0.6)):
        for seed in (1, 2):
            make_planted_run(tmp_path / f"{len(name)}" / f"s{seed}", seed, score, ref_model=name)
    page = render_page(compare_runs([tmp_path]))
    assert "<script" not in page
    assert "&lt;script" in page


@pytest.mark.slow
@pytest.mark.parametrize("which", ["planted", "many"])
def test_the_page_fits_a_phone_and_a_desk_light_and_dark(which, request, tmp_path):
    page = tmp_path / "compare.html"
    page.write_text(render_page(compare_runs([request.getfixturevalue(which)])))
    with browser() as opened:
        for width, scheme in ((1200, "light"), (390, "light"), (390, "dark"), (320, "light")):
            size = {"width": width, "height": 800}
            with page_of(opened, page.as_uri(), viewport=size, color_scheme=scheme) as shown:
                assert shown.evaluate("document.documentElement.scrollWidth") <= width
                background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (background == "rgb(17, 19, 23)") == (scheme == "dark")
                outside = """[...document.querySelectorAll('.line i')].filter(mark => {
                    const own = mark.getBoundingClientRect(), line = mark.parentElement.getBoundingClientRect();
                    return own.left < line.left - 6 || own.right > line.right + 6 }).length"""
                assert shown.evaluate(outside) == 0
