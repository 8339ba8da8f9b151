"""The documentation is true: its formulas are run against the library, its tables are the code's, no name is missing."""

from __future__ import annotations

import builtins
import importlib.util
import re
from types import SimpleNamespace

import pytest
import torch

import grpokit.losses
from grpokit.commands.explain.curves import compose
from grpokit.commands.explain.show import logged_metrics
from grpokit.common.noise import keyed_hash
from grpokit.losses import LOSSES, RATIO_LEVELS, REDUCTIONS, SURROGATES, family
from grpokit.losses.correction import CORRECTION_LEVELS, CORRECTION_MODES
from grpokit.losses.kl import KL_ESTIMATORS, KL_GRADIENTS
from helpers.family_data import MAX_LENGTH, build, flat, make_step, run
from helpers.places import ROOT

DOCS = ROOT / "docs"
ENGLISH, CHINESE = DOCS / "en", DOCS / "zh"
RANKS = 2
FORMULA = re.compile(r"^```python formula\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^```python example\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"<!-- table:\w+ -->.*?<!-- /table -->", re.DOTALL)
SECTIONS = [
    "The problem",
    "Formula",
    "What the gradient does",
    "Parts and defaults",
    "Metrics",
    "Traps, and other implementations",
    "Reference",
]

spec = importlib.util.spec_from_file_location("build", DOCS / "build.py")
build_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_docs)

translated = pytest.mark.skipif(not (CHINESE / "losses").exists(), reason="there are no pages in docs/zh yet")


def page(language, name):
    return (language / "losses" / f"{name}.md").read_text(encoding="utf-8")


def texts(language):
    return "\n".join(path.read_text(encoding="utf-8") for path in language.rglob("*.md"))


# --------------------------------------------------------------------------- formulas


def executable(text):
    """The page's `loss(sequences)`. What it may use: torch's functions, keyed_hash, P ranks and the length L_max."""
    [code] = FORMULA.findall(text)
    assert len(code.strip().splitlines()) <= 15
    # torch's functions, but Python's own sum, max, int, ...
    public = [
        name for name in dir(torch) if name.islower() and name[0] != "_" and not hasattr(builtins, name)
    ]
    names = {name: getattr(torch, name) for name in public}
    names |= {"keyed_hash": keyed_hash, "P": RANKS, "L_max": MAX_LENGTH}
    exec(code, names)  # noqa: S102 (our own documentation)
    return names["loss"]


def whole_sequences(step):
    """The step as the pages' programs see it: a list of sequences that have a token, in order."""
    sequences = []
    for i in range(len(step.mask)):
        at = torch.nonzero(step.mask[i]).flatten()
        if len(at):
            a = step.advantages[i][at] if step.advantages.ndim == 2 else float(step.advantages[i])
            s = SimpleNamespace(
                id=i, group=int(step.groups[i]), rank=int(step.ranks[i]), T=len(at), A=a, positions=at
            )
            s.logp = step.logps[i, at].clone().requires_grad_()
            s.old, s.mu = step.old[i, at], step.sampler[i, at]
            sequences.append(s)
    return sequences


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", [0.01, 0.5, 1.5])
def test_the_formula_is_the_loss(name, spread):
    """Value and gradient of the page's program are the library's, on random updates dealt to two ranks."""
    loss, program = build(name), executable(page(ENGLISH, name))
    compared = 0
    for seed in range(12):
        step = make_step(seed, rows=8, spread=spread, per_token=name == "gspo_token", num_ranks=RANKS)
        sequences = whole_sequences(step)
        value = program(sequences)
        want = run(loss, flat(loss, step), [slice(None)])
        gradient = torch.zeros_like(want.gradient)  # a step may have nothing to learn from
        if isinstance(value, torch.Tensor) and value.requires_grad:
            leaves = [s.logp for s in sequences]
            grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
            gradient, value = torch.cat(grads), value.detach()
            compared += 1
        torch.testing.assert_close(torch.as_tensor(value).double(), want.loss, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(gradient, want.gradient, rtol=1e-9, atol=1e-9)
    assert compared >= 6


def test_the_formula_test_can_fail():
    """A program with another clip is found out."""
    broken = executable(page(ENGLISH, "grpo").replace("1 + 0.2)", "1 + 0.21)"))
    loss, step = build("grpo"), make_step(1, rows=8, num_ranks=RANKS)
    want = run(loss, flat(loss, step), [slice(None)]).loss
    assert abs(float(broken(whole_sequences(step)).detach()) - float(want)) > 1e-6


def test_examples_of_the_docs_run():
    """The index's examples, one after the other, as a reader would."""
    names = {}
    try:
        for code in EXAMPLE.findall(page(ENGLISH, "index")):
            exec(code, names)  # noqa: S102 (our own documentation)
        assert names["total"].requires_grad
    finally:
        family._ROWS.pop("square_root", None)
        SURROGATES.pop("square_root", None)


# --------------------------------------------------------------------------- pages


def check_names(language):
    """Everything that a user can name is mentioned, as code."""
    text = texts(language)
    names = {
        *grpokit.losses.__all__,
        *LOSSES,
        *SURROGATES,
        *REDUCTIONS,
        *RATIO_LEVELS,
        *KL_ESTIMATORS,
        *KL_GRADIENTS,
    }
    names |= {*family.COMMON_OPTIONS, *CORRECTION_MODES, *CORRECTION_LEVELS}
    names |= {option for part in SURROGATES.values() for option in part.options}
    missing = [name for name in sorted(names) if not re.search(rf"\b{re.escape(name)}\b", text)]
    assert not missing


def test_english_names_everything():
    check_names(ENGLISH)


@translated
def test_chinese_names_everything():
    check_names(CHINESE)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_page_in_the_same_order(name):
    text = page(ENGLISH, name)
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert f"(../../pictures/losses/{name}.svg)" in text
    assert "<!-- table:parts -->" in text
    assert "<!-- formula -->" in text


@pytest.mark.parametrize("name", LOSSES)
def test_a_page_says_how_to_read_the_metrics_of_its_loss(name):
    """Metrics that not every loss has; the index has the others."""
    common = set.intersection(*(set(logged_metrics(compose(other))) for other in LOSSES))
    for metric in set(logged_metrics(compose(name))) - common:
        assert f"`{metric}`" in page(ENGLISH, name), metric
    for metric in common:
        assert f"`{metric}`" in page(ENGLISH, "index"), metric


def test_no_page_is_left_over():
    names = {path.stem for path in (ENGLISH / "losses").glob("*.md")}
    assert names == {"index", *LOSSES}


def check_links(language):
    """Links within the documentation lead somewhere."""
    for path in language.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (path.parent / target).resolve().exists(), (path, target)


def test_links_lead_somewhere():
    check_links(ENGLISH)


def test_nothing_generated_is_stale():
    """`python docs/build.py` makes the tables, formulas and pictures of both languages."""
    assert build_docs.stale(["en"]) == []


@translated
def test_nothing_generated_is_stale_in_chinese():
    assert build_docs.stale(["zh"]) == []


def test_staleness_is_noticed():
    text = page(ENGLISH, "grpo").replace("| `epsilon` | `0.2` |", "| `epsilon` | `0.3` |")
    assert build_docs.generated(text, "grpo", "en") == page(ENGLISH, "grpo") != text
    with pytest.raises(ValueError, match="no table 'nonsense'"):
        build_docs.generated("<!-- table:nonsense -->\n<!-- /table -->", "grpo", "en")


@translated
def test_both_languages_say_the_same():
    """The same files, the same programs and, but for their labels, the same tables and formulas."""
    files = [
        sorted(path.relative_to(language) for path in language.rglob("*.md"))
        for language in (ENGLISH, CHINESE)
    ]
    assert files[0] == files[1]
    for relative in files[0]:
        english, chinese = (
            (language / relative).read_text(encoding="utf-8") for language in (ENGLISH, CHINESE)
        )
        for block in (FORMULA, EXAMPLE):
            assert block.findall(english) == block.findall(chinese), relative
        in_english = build_docs.generated(chinese, relative.stem, "en")
        assert TABLE.findall(in_english) == TABLE.findall(english), relative
        assert len(re.findall(r"^#+ ", english, re.MULTILINE)) == len(
            re.findall(r"^#+ ", chinese, re.MULTILINE)
        ), relative
    check_links(CHINESE)


def test_every_test_that_is_named_exists():
    """`test_faults.py::test_killed_ten_times_and_resumed_to_the_byte`, and paths such as `tests/project/test_docs.py`."""
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    named = 0
    for page in [ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for file, name in re.findall(r"(test_\w+\.py)::(test_\w+)", text):
            assert f"def {name}(" in files[file].read_text(encoding="utf-8"), (page.name, file, name)
            named += 1
        for path in re.findall(r"\btests/[\w/]+\.py\b", text):
            assert (ROOT / path).exists(), (page.name, path)
    assert named > 150
