"""`grpokit losses` shows every row of the table, in a terminal and in pictures, and a row of one's own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from rich.console import Console

from grpokit.commands.explain import list_losses, plot_losses, show_loss
from grpokit.commands.explain.curves import compose, curve, sections
from grpokit.commands.explain.notes import NOTES
from grpokit.commands.explain.plain_text import plain_text
from grpokit.commands.explain.show import logged_metrics
from grpokit.commands.explain.weights import LENGTHS, example_weights
from grpokit.losses import (
    LOSSES,
    RATIO_LEVELS,
    REDUCTIONS,
    SURROGATES,
    LossRow,
    family,
    make_loss,
    register,
    surrogate,
)
from grpokit.losses.reductions import REDUCTION_FORMULAS
from helpers.family_data import WEIGHTS

T64 = torch.float64


def printed(show, *args, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show(*args, out=console)
    console.file.close()
    return console.export_text()


@pytest.fixture
def own():
    """A loss of one's own in the table: a cubed ratio, coupled to the update by a statistic that nobody knows."""

    @surrogate(
        formula=r"\ell = -\rho^{3}\,A\,\bar{x}",
        needs_update="step",
        statistics=lambda tokens: {"share": torch.full_like(tokens.logps, 1.0)},
        ratio_levels=("token",),
    )
    def cubed(log_ratio, advantages, logps, share):
        return -(3 * log_ratio).exp() * advantages * share

    register("own", LossRow("token", "cubed", "token_mean", "nowhere", "a cubed ratio"))
    yield "own"
    family._ROWS.pop("own")
    SURROGATES.pop("cubed")


def test_every_loss_is_listed(own):
    text = printed(list_losses)
    for name, row in LOSSES.items():
        assert re.search(rf"^ *{name} ", text, re.MULTILINE), name
        assert row.surrogate in text
        assert row.summary.split()[0] in text
    assert "a cubed ratio" in text


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_shown(name):
    text = printed(show_loss, name, width=200)
    row, loss = LOSSES[name], compose(name)
    for part in (
        row.summary,
        row.paper,
        row.reduction,
        row.surrogate,
        NOTES[name].problem,
        *NOTES[name].traps,
    ):
        assert part in text
    assert not re.search(r"[\\{}]", text), "LaTeX is left over"
    for metric, meaning in logged_metrics(loss).items():
        assert metric in text
        assert meaning, f"{metric} has no meaning"
    assert ("needs a statistics pass over the update" in text) == loss.needs_stats


def test_notes_are_of_losses_that_there_are():
    assert set(NOTES) == set(LOSSES)


def test_a_loss_of_ones_own_is_shown_and_drawn(own, tmp_path):
    text = printed(show_loss, own)
    assert "ρ³" in text
    assert "traps" not in text
    assert curve(compose(own), torch.tensor([0.5, 2.0], dtype=T64), 1.0).g.tolist() == pytest.approx(
        [3 / 8, 24.0]
    )
    assert plot_losses([own, "grpo"], tmp_path / "own.svg")


def test_an_unknown_name_is_refused_as_make_loss_refuses_it(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'dapo'"):
        show_loss("dapoo")
    with pytest.raises(ValueError, match="did you mean 'dapo'"):
        plot_losses(["dapoo"], tmp_path / "x.svg")
    with pytest.raises(ValueError, match=r"losses\.svg works"):
        plot_losses(["dapo"], tmp_path / "x.pdf")


COLUMNS = {
    "dapo A>0": ("dapo", {"delta": 2.5}, 1.0, 1),
    "dapo A<0": ("dapo", {"delta": 2.5}, -1.0, 2),
    "grpo A>0": ("grpo", {"epsilon_high": 0.28, "delta": 2.5}, 1.0, 1),
    "bnpo A<0": ("bnpo", {"epsilon_high": 0.28, "delta": 2.5}, -1.0, 2),
    "dr_grpo A<0": ("dr_grpo", {"epsilon_high": 0.28, "delta": 2.5, "max_completion_length": 7}, -1.0, 2),
    "sapo A>0": ("sapo", {}, 1.0, 3),
    "sapo A<0": ("sapo", {}, -1.0, 4),
    "cispo A>0": ("cispo", {}, 1.0, 5),
    "cispo A<0": ("cispo", {}, -1.0, 5),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_the_drawn_weight_is_that_of_the_table_of_values(case):
    """g as it is plotted, against the reference values: where ∂ℓ/∂logp = −g·A."""
    name, options, advantage, column = COLUMNS[case]
    x = torch.tensor([row[0] for row in WEIGHTS], dtype=T64)
    drawn = curve(make_loss(name, **options), x, advantage)
    assert drawn.g.tolist() == pytest.approx([row[column] for row in WEIGHTS], abs=5e-5)


@pytest.mark.parametrize("name", ["grpo", "sapo", "gspo", "spo", "importance_sampling", "gmpo", "real"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_drawn_weight_is_the_slope_of_the_drawn_loss(name, advantage):
    """For losses with no detached factor, dℓ/d log ρ = −g·A, by finite differences away from the kinks."""
    x = torch.exp(torch.linspace(-2, 2, 40001, dtype=T64))
    if name == "real":
        x = x[::800]  # evaluated one by one
    drawn = curve(compose(name), x, advantage)
    slope = (drawn.ell[2:] - drawn.ell[:-2]) / (x.log()[2:] - x.log()[:-2])
    smooth = (drawn.held[2:] == drawn.held[:-2]) & (drawn.held[1:-1] == drawn.held[:-2])
    tolerance = 3e-3 if name == "real" else 1e-6
    torch.testing.assert_close(
        slope[smooth], -advantage * drawn.g[1:-1][smooth], rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_every_curve_is_finite_and_at_ratio_one_the_policy_gradient(name, advantage):
    loss = compose(name)
    expected = {"$F_t=1$": 1.2, "$M=0$": 0.0, r"$t\in S$": 0.0 if name == "clip_cov" else 1.0}
    for section in sections(loss):
        at_one = 1.0 if section.mu is None else section.mu
        drawn = curve(loss, torch.tensor([0.05, at_one, 0.9], dtype=T64), advantage, section)
        assert drawn.g.isfinite().all()
        assert drawn.ell.isfinite().all()
        assert float(drawn.g[1]) == pytest.approx(expected.get(section.label, 1.0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_example_weights_are_the_reductions(reduction):
    """The picture's numbers by hand: 8 sequences, 2 prompts of 250 and 2,000 tokens, 2 ranks of 900 and 1,350."""
    expected = {
        "sequence_mean": [1 / (8 * t) for t in LENGTHS],
        "rank_token_mean": [1 / (2 * 900), 1 / (2 * 1350)] * 4,
        "token_mean": [1 / 2250] * 8,
        "constant_length": [1 / (8 * 1024)] * 8,
        "sequence_sum": [1 / 8] * 8,
        "prompt_mean": [1 / (2 * 250)] * 4 + [1 / (2 * 2000)] * 4,
    }
    assert example_weights(reduction).tolist() == pytest.approx(expected[reduction])


def test_pictures_are_drawn_in_each_format(tmp_path):
    """One file for each axis and one for the weights; SVG is well-formed and the same at every run."""
    names = ["grpo", "bnpo", "gspo", "dppo_tv"]
    svgs = plot_losses(names, tmp_path / "a.svg")
    assert [path.name for path in svgs] == ["a.svg", "a-near.svg", "a-sampler.svg", "a-weights.svg"]
    for path in svgs:
        ElementTree.fromstring(path.read_text())
    again = plot_losses(names, tmp_path / "b.svg")
    assert [p.read_text() for p in again] == [p.read_text() for p in svgs]
    for path in plot_losses(["cispo"], tmp_path / "deep" / "c.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_page_is_self_contained_and_has_every_loss(tmp_path):
    [path] = plot_losses([], tmp_path / "all.html")
    text = path.read_text()
    for name in LOSSES:
        assert f"<h2>{name}</h2>" in text
    assert text.count("<svg") == len(LOSSES) + 1
    outside = [link for link in re.findall(r'(?:href|src)="([^"]+)"', text) if not link.startswith("#")]
    assert not outside
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(ids)


FORMULAS = [s.formula for s in SURROGATES.values()] + [level.formula for level in RATIO_LEVELS.values()]


@pytest.mark.parametrize("latex", [*FORMULAS, *REDUCTION_FORMULAS.values()])
def test_formulas_are_readable_in_a_terminal(latex):
    assert not re.search(r"[\\{}]", plain_text(latex))


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"w_i = \frac{1}{N\,T_i}", "wᵢ = 1/(N·Tᵢ)"),
        (r"\ell = -\frac{4}{\tau}\,\sigma\left(\tau(\rho-1)\right)\,A", "ℓ = −4/τ·σ(τ(ρ−1))·A"),
        (r"\frac{|A|}{2\epsilon}\,(\rho-1)^2", "|A|/(2ε)·(ρ−1)²"),
        (r"\sum_{k\geq t}\gamma^{k-t}\log\rho_k", "Σ_(k ≥ t) γᵏ⁻ᵗ log ρₖ"),
        (r"\log\pi_t - \log\pi_{old,t}", "log πₜ − log π_old,t"),
    ],
)
def test_formulas_become_plain_text(latex, text):
    assert plain_text(latex) == text
