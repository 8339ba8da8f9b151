"""The report: which plots, cards, groups and settings are in the page."""

import re

from helpers.synthetic_runs import make_run, plots, report, write_lines

# --------------------------------------------------------------------------- synthetic runs


# --------------------------------------------------------------------------- what is in the page


def test_plots_of_a_grpo_run(grpo_page):
    page = grpo_page
    assert plots(page) == [
        "reward",
        "reward-functions",
        "evaluation",
        "clip",
        "ess",
        "ratio",
        "entropy",
        "length",
        "zero-std",
        "grad-norm",
        "kl",
        "time",
        "throughput",
        "loss",
        "learning-rate",
    ]
    assert page.count("<figcaption>") == len(plots(page))
    assert page.count("<svg") == len(plots(page)) + 1 + 3  # the reward's for phones, three lines of formula
    assert page.count("aria-label=") == page.count("<svg")


def test_plots_follow_what_the_run_measured(tmp_path):
    shown = plots(report(make_run(tmp_path / "r", loss_type="sapo")))
    assert "gate" in shown
    assert "clip" not in shown


def test_each_dataset_has_a_curve_of_its_reward(tmp_path):
    path = make_run(tmp_path / "r", steps=3)
    one = {"reward/math/mean": 0.25, "reward/kl": -0.1}
    several = one | {"reward/a/b/mean": 0.75}
    for extra, shown in ((one, False), (several, True)):
        write_lines(path / "metrics.jsonl", [{"step": n, "reward": 0.5, **extra} for n in (1, 2, 3)])
        page = report(path)
        assert ("reward-datasets" in plots(page)) == shown
        assert ("a/b: 0.75 at step 1" in page and "math: 0.25 at step 1" in page) == shown


def test_cards_show_the_last_figures(grpo_page):
    text = re.sub(r"<[^>]+>", " ", grpo_page)
    for wanted in (
        r"pass@1, sampled\s+31\.2% →\s+95\.1%",
        r"pass@1, greedy\s+33\.2% →\s+97\.1%",
        r"pass@4\s+34\.2% →\s+98\.1%",
        r"Steps\s+20\s+all done",
        r"Wall time\s+8 s",
        r"Reward\s+0\.\d{3} →\s+0\.\d{3}\s+training, first and last 2 steps",
    ):
        assert re.search(wanted, text), wanted


def test_evaluation_figures_within_metrics(tmp_path):
    """The evaluation before training may be a row of its own in metrics.jsonl, with nothing but eval/ figures."""
    path = make_run(tmp_path / "r", steps=3)
    (path / "evaluations.jsonl").unlink()
    rows = [{"step": 0, "eval/pass@1": 0.25}, {"step": 0, "reward": 0.2}, {"step": 1, "reward": 0.3}]
    write_lines(path / "metrics.jsonl", [*rows, {"step": 2, "reward": 0.4, "eval/pass@1": 0.75}])
    text = re.sub(r"<[^>]+>", " ", report(path))
    assert re.search(r"25\.0% →\s+75\.0%\s+held-out, step 0 → 2", text)
    assert re.search(r"Steps\s+3\s+all done", text)


def test_best_and_worst_group_of_the_last_step(grpo_page):
    page = grpo_page
    best, worst = page.index("Best group"), page.index("Worst group")
    assert best < page.index(">the best<") < worst < page.index(">the worst<")
    assert ">middle<" not in page
    assert "Completions of step 20" in page


def test_configuration_marks_what_was_changed(tmp_path):
    page = report(make_run(tmp_path / "r", num_iterations=2))
    changed = re.findall(r"<tr class=\"changed\"><th scope='row'>([a-z_<>]+)</th>", page)
    assert [name.replace("<wbr>", "") for name in changed] == [
        "model",
        "dataset",
        "num_iterations",
        "max_steps",
    ]
    assert re.search(r"4 of \d+ options differ from their defaults", page)
    assert page.index("num_<wbr>iterations") < page.index("num_<wbr>generations")
    assert "default 1</span>" in page


def test_formula_is_drawn_or_shown_as_it_is(tmp_path):
    page = report(make_run(tmp_path / "r"), formula=r"a = \frac{1}{N}" + "\n" + r"\nosuchcommand{<x>}")
    assert 'aria-label="a = \\frac{1}{N}"' in page
    assert r"<code>\nosuchcommand{&lt;x&gt;}</code>" in page
    assert "The loss" not in report(tmp_path / "r")
