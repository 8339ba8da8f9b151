"""Several datasets in one order: keyed draws, each dataset's own order, names and weights."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpokit.config.options import EvalConfig, TrainConfig
from grpokit.data import mixture
from grpokit.data.mixture import MixedPrompts, source_seed
from grpokit.data.names import read_name, read_names
from grpokit.data.prompts import Prompts
from grpokit.data.rows import DatasetRow
from grpokit.training.setup.prompts import load_datasets
from helpers.chats import PLAIN
from helpers.refusals import refuses


def part(name: str, count: int, seed: int = 1, **columns) -> Prompts:
    rows = [
        DatasetRow(f"{name}{n}", {"n": n, **columns}, f"{name}.jsonl:{n + 1}", "prompt") for n in range(count)
    ]
    return Prompts(rows, PLAIN, seed=source_seed(seed, name))


def mixed(weights=None, seed: int = 1, **sizes: int) -> MixedPrompts:
    return MixedPrompts({name: part(name, size, seed) for name, size in sizes.items()}, weights, seed)


# --------------------------------------------------------------------------- the order


@given(
    weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=4),
    seed=st.integers(0, 2**50),
    block=st.integers(1, 30),
    start=st.integers(0, 90),
)
@settings(max_examples=20, deadline=None)
def test_each_dataset_goes_on_in_its_own_order_whenever_it_is_drawn(weights, seed, block, start):
    """Read from anywhere, the order is that of a loop that draws a dataset and takes its next prompt."""
    parts = {f"d{n}": part(f"d{n}", 3 + n, seed) for n in range(len(weights))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixture, "BLOCK", block)
        ours = MixedPrompts(parts, weights, seed)
        found = [prompt.content for prompt in ours.take(start, 30)]
        names = [ours.names[ours.place(position)[0]] for position in range(start + 30)]
    uses, expected = Counter(), []
    for name in names:
        expected.append(parts[name].at(uses[name]).content)
        uses[name] += 1
    assert found == expected[start:]


def test_weights_are_shares_of_the_prompts_and_rows_decide_without_them():
    by_weight, by_rows = mixed([7, 3], a=5, b=5), mixed(a=30, b=10)
    found = Counter(by_weight.place(position)[0] for position in range(4000))
    assert found[0] / 4000 == pytest.approx(0.7, abs=4 * (0.7 * 0.3 / 4000) ** 0.5)
    found = Counter(by_rows.place(position)[0] for position in range(4000))
    assert found[0] / 4000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 4000) ** 0.5)


def test_a_dataset_that_ends_begins_again_by_itself():
    taken = [prompt.content for prompt in mixed([1, 1], a=3, b=50).take(0, 200)]
    of_a = [content for content in taken if content.startswith("a")]
    for start in range(0, len(of_a) - 3, 3):
        assert sorted(of_a[start : start + 3]) == ["a0", "a1", "a2"]


def test_another_dataset_changes_no_order_of_its_neighbours():
    orders = [
        [p.content for p in m.take(0, 300) if p.dataset == "a"] for m in (mixed(a=9, b=9), mixed(c=4, a=9))
    ]
    shared = min(map(len, orders))
    assert shared > 50
    assert orders[0][:shared] == orders[1][:shared]


def test_prompts_have_the_name_of_their_dataset_unless_the_row_names_its_source():
    own = MixedPrompts({"a": part("a", 2), "b": part("b", 2, data_source="gsm8k", more=1)}, seed=1)
    assert own.columns == {"n", "more", "data_source"}
    for prompt in own.in_order():
        assert prompt.columns["data_source"] == {"a": "a", "b": "gsm8k"}[prompt.dataset]
        assert prompt.columns.keys() == own.columns
    assert [(p.content, p.position) for p in own.in_order()] == [("a0", 0), ("a1", 1), ("b0", 2), ("b1", 3)]
    assert [p.content for p in own.in_order(3)] == ["a0", "a1", "b0"]
    assert [own.by_row(row, 7).content for row in range(4)] == ["a0", "a1", "b0", "b1"]
    assert own.by_row(3, 7).position == 7


# --------------------------------------------------------------------------- names and weights


@pytest.mark.parametrize(
    ("value", "name", "place", "weight"),
    [
        ("data/a.jsonl", "a", "data/a.jsonl", None),
        ("a.jsonl.gz:0.7", "a", "a.jsonl.gz", 0.7),
        ("math=a.parquet:2", "math", "a.parquet", 2.0),
        ("org/data", "org/data", "org/data", None),
        ("org/data:main", "org/data", "org/data:main", None),
        ("org/data:main:.5", "org/data", "org/data:main", 0.5),
        ("m=org/data:1e-3", "m", "org/data", 0.001),
        ("FOLDER", "folder", "FOLDER", None),
        ("FOLDER:main", "folder", "FOLDER:main", None),
        ("FOLDER:main:3", "folder", "FOLDER:main", 3.0),
    ],
)
def test_a_suffix_that_is_a_number_is_the_weight(tmp_path, value, name, place, weight):
    (tmp_path / "folder").mkdir()
    folder = str(tmp_path / "folder")
    found = read_name(value.replace("FOLDER", folder))
    assert (found.name, found.place, found.weight) == (name, place.replace("FOLDER", folder), weight)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["a.jsonl:0.5", "b.jsonl"], "--dataset b.jsonl: has no weight, and others have one"),
        (
            ["x/a.jsonl", "y/a.jsonl"],
            "--dataset y/a.jsonl: two datasets are named 'a'; name them: first=x/a.jsonl",
        ),
        (
            ["m=a.jsonl", "m=b.jsonl"],
            "two datasets are named 'm'; name them: first=a.jsonl second=b.jsonl",
        ),
        (["a.jsonl:0", "b.jsonl:1"], "--dataset a.jsonl:0: the weight must be above 0"),
    ],
)
def test_names_and_weights_that_cannot_work_are_refused(values, said):
    refuses(lambda: read_names(values), said)


def test_a_weight_that_is_no_number_is_called_so(write):
    path = write({"prompt": "a"}, name="a.jsonl")
    refuses(
        lambda: read_names([f"{path}:0,7", f"b={path}:0.3"]),
        ":0,7: '0,7' is no weight; a weight is a number above 0",
    )


def test_options_cut_and_evaluate_each_dataset(write):
    a = write(*[{"prompt": f"a{n}"} for n in range(5)], name="a.jsonl")
    b = write(*[{"prompt": f"b{n}"} for n in range(5)], name="b.jsonl")
    config = EvalConfig(dataset=(a, f"other={b}"), max_samples=2)
    found = load_datasets(config, PLAIN, None).in_order()
    assert [(p.content, p.dataset) for p in found] == [
        ("a0", "a"),
        ("a1", "a"),
        ("b0", "other"),
        ("b1", "other"),
    ]
    (named,) = load_datasets(TrainConfig(dataset=f"math={a}", max_samples=1), PLAIN, None).take(0, 1)
    assert (named.content, named.columns["data_source"]) == ("a0", "math")
    (plain,) = load_datasets(TrainConfig(dataset=a, max_samples=1), PLAIN, None).take(0, 1)
    assert (plain.columns, plain.dataset) == ({}, "")
