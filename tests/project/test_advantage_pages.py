"""The pages on advantages are true: their formulas and examples are run against the library."""

from __future__ import annotations

import builtins
import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch

from grpokit.batch.advantages import ESTIMATORS, SCALINGS, add_advantages
from helpers.places import ROOT
from helpers.tiny import group_of

PAGES = ROOT / "docs" / "en" / "advantages"
FORMULA = re.compile(r"^```python formula\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^```python example\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)`(?:, `--scale_rewards (\w+)`)? \| (.+) \| (.+) \|$", re.MULTILINE)
SECTIONS = ["The problem", "Formula", "What it does", "Traps, and other implementations", "Reference"]
WEIGHTS = (1.0, 0.5)  # of two reward functions
CASES = [
    ("group", scale, {"scale": scale}) for scale in SCALINGS
] + [(name, "group", {}) for name in ESTIMATORS if name != "group"]  # fmt: skip


def page(name):
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def program(text):
    """The page's `advantages(groups)`, which may use torch's functions."""
    [code] = FORMULA.findall(text)
    assert len(code.strip().splitlines()) <= 15
    public = [
        name for name in dir(torch) if name.islower() and name[0] != "_" and not hasattr(builtins, name)
    ]
    names = {name: getattr(torch, name) for name in public}
    exec(code, names)  # noqa: S102 (our own documentation)
    return names["advantages"]


def random_step(seed):
    """Groups of 4 with two reward functions, and the same as the pages' programs see them. One has equal rewards."""
    generator = torch.Generator().manual_seed(seed)
    groups, plain = [], []
    for position in range(5):
        r = torch.randint(0, 5, (4, 2), generator=generator).double() / 4
        if position == 0:
            r[:] = r[0]
        lengths = torch.randint(1, 30, (4,), generator=generator)
        weights = torch.tensor(WEIGHTS).double()
        group = group_of((r @ weights).tolist(), lengths.tolist(), position)
        greedy = torch.tensor(position / 4).double()
        groups.append(dataclasses.replace(group, rewards=r, greedy_reward=greedy))
        plain.append(SimpleNamespace(R=r @ weights, r=r, T=lengths.double(), weights=weights, greedy=greedy))
    return groups, plain


@pytest.mark.parametrize(("name", "scale", "options"), CASES)
def test_the_formula_is_the_estimator(name, scale, options):
    by_hand = program(page(name))
    for seed in range(20):
        groups, plain = random_step(seed)
        got = add_advantages(groups, name, scale, WEIGHTS)
        for group, want in zip(got, by_hand(plain, **options), strict=True):
            torch.testing.assert_close(group.advantages, want, rtol=1e-12, atol=1e-12)


def test_the_formula_test_can_fail():
    """A program with another constant is found out."""
    groups, plain = random_step(0)
    broken = program(page("group").replace("+ 1e-4", "+ 1e-6"))(plain)
    got = add_advantages(groups, "group")
    assert max(float((g.advantages - b).abs().max()) for g, b in zip(got, broken, strict=True)) > 1e-6


@pytest.mark.parametrize("name", ESTIMATORS)
def test_examples_run(name):
    """The index's helper, then the page's example, as a reader would."""
    examples = EXAMPLE.findall(page(name))
    assert examples
    names = {}
    for code in [*EXAMPLE.findall(page("index")), *examples]:
        exec(code, names)  # noqa: S102 (our own documentation)


def test_the_table_of_the_index_is_computed():
    groups = [group_of([0, 0, 1, 3], [10, 20, 30, 40]), group_of([1, 1, 0, 1], [10] * 4, 1)]
    groups = [dataclasses.replace(group, greedy_reward=torch.tensor(1.0).double()) for group in groups]
    rows = ROW.findall(page("index"))
    assert {row[0] for row in rows} == set(ESTIMATORS) - {"gdpo"}
    for name, scale, *cells in rows:
        for group, cell in zip(add_advantages(groups, name, scale or "group"), cells, strict=True):
            want = [float(number) for number in cell.replace("−", "-").split()]
            assert group.advantages.tolist() == pytest.approx(want, abs=5.1e-4)


def test_the_table_of_gdpo_is_computed():
    rows = re.findall(r"^\| ((?:\(\d+,\d+\) ?)+) \| (.+) \| (.+) \|$", page("gdpo"), re.MULTILINE)
    assert len(rows) == 3
    rewards = [[list(map(float, pair)) for pair in re.findall(r"(\d+),(\d+)", row[0])] for row in rows]
    groups = [
        dataclasses.replace(group_of([sum(pair) for pair in r]), rewards=torch.tensor(r).double())
        for r in rewards
    ]
    for column, name in ((1, "group"), (2, "gdpo")):
        for group, row in zip(add_advantages(groups, name), rows, strict=True):
            want = [float(number) for number in row[column].replace("−", "-").split()]
            assert group.advantages.tolist() == pytest.approx(want, abs=5.1e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_has_a_page_in_the_same_order(name):
    text = page(name)
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert f"]({name}.md)" in page("index")


def test_no_page_is_left_over():
    assert {path.stem for path in PAGES.glob("*.md")} == {"index", *ESTIMATORS}
