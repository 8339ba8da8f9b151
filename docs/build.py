"""Builds the generated parts of the documentation, in both languages: tables, formulas, pictures.

python docs/build.py            writes them
python docs/build.py --check    lists the stale ones, and exits with 1 if there are any

A page marks its generated parts: <!-- table:parts --> ... <!-- /table -->, and <!-- formula --> ... <!-- /formula -->.
Labels are translated here. Everything else in a table is code, symbols and numbers, the same in every language.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from grpokit.commands.explain.curves import compose
from grpokit.commands.explain.show import distinct, formula_lines, option_value
from grpokit.losses import LOSSES, RATIO_LEVELS, REDUCTIONS, SURROGATES, Loss
from grpokit.losses.reductions import REDUCTION_FORMULAS

DOCS = Path(__file__).resolve().parent
PICTURES = DOCS / "pictures" / "losses"
OVERVIEW = ["dapo", "cispo", "sapo", "spo"]  # the family's shapes in one picture

LABELS = {
    "en": {},
    "zh": {
        "part": "组成",
        "value": "取值",
        "ratio level": "比率层级",
        "ratio level × surrogate × reduction": "比率层级 × 替代目标 × 归约",
        "surrogate": "替代目标",
        "reduction": "归约",
        "default": "默认值",
        "defaults": "默认值",
        "advantages divided by": "优势除以",
        "couples the tokens of": "耦合范围",
        "unchanged by cuts": "切分不变",
        "also needs": "另需字段",
        "one advantage per sequence": "每条序列一个优势",
        "rows with A = 0 leave early": "A = 0 的行提前离开",
        "loss": "损失",
        "couples": "耦合",
        "paper": "论文",
        "weight of a token": "单个 token 的权重",
        "log-ratio": "对数比率",
        "used by": "使用者",
        "yes": "是",
        "no": "否",
    },
}
_REGION = re.compile(r"<!-- (?:table:(\w+)|(formula)) -->\n.*?<!-- /(?:table|formula) -->", re.DOTALL)


def _table(rows: list[tuple[str, ...]]) -> str:
    head, *body = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _code(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names) if isinstance(names, list | tuple | set) else f"`{names}`"


def parts(name: str, say: Callable[[str], str]) -> str:
    """Lists the parts of a loss, its options, and the properties that follow."""
    loss = compose(name)
    rows = [
        ("part", "value"),
        ("ratio level", _code(loss.ratio_level)),
        ("surrogate", _code(loss.surrogate.name)),
        ("reduction", f"{_code(loss.reduction)}, ${REDUCTION_FORMULAS[loss.reduction]}$"),
    ]
    rows += [(_code(option), f"`{option_value(value)}`") for option, value in loss.options.items()]
    rows += [
        ("advantages divided by", _code(loss.scale_rewards)),
        ("couples the tokens of", _code(loss.coupling)),
        ("unchanged by cuts", _code(sorted(distinct(loss)))),
    ]
    if loss.stats_fields:
        rows.append(("also needs", _code(loss.stats_fields)))
    elif loss.needs_sampler:
        rows.append(("also needs", "`sampler_logps`"))
    rows += [
        ("one advantage per sequence", say("yes" if loss.one_advantage else "no")),
        ("rows with A = 0 leave early", say("yes" if loss.drops_dead_rows else "no")),
    ]
    return _table(_translated(rows, say))


def _translated(rows: list[tuple[str, ...]], say: Callable[[str], str]) -> list[tuple[str, ...]]:
    """Translates the head and the first column's labels."""
    return [tuple(say(cell) for cell in rows[0]), *((say(label), *rest) for label, *rest in rows[1:])]


def family(_: str, say: Callable[[str], str]) -> str:
    """Lists all losses."""
    rows = [("loss", "ratio level × surrogate × reduction", "defaults", "couples", "paper")]
    for name, row in LOSSES.items():
        loss = compose(name)
        composition = " × ".join(_code(part) for part in (row.ratio_level, row.surrogate, row.reduction))
        defaults = ", ".join(f"{k} {option_value(v)}" for k, v in loss.options.items() if v is not None)
        papers = re.findall(r"(?<!not )arXiv:(\d{4}\.\d{5})", row.paper)
        links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in papers)
        cells = (composition, defaults or "—", _code(loss.coupling), links or "—")
        rows.append((f"[`{name}`]({name}.md)", *cells))
    return _table(_translated(rows, say))


def reductions(_: str, say: Callable[[str], str]) -> str:
    """Lists every reduction with its weight and the losses that use it."""
    rows = [("reduction", "weight of a token", "used by")]
    rows += [
        (_code(r), f"${REDUCTION_FORMULAS[r]}$", _users(lambda loss, r=r: loss.reduction == r))
        for r in REDUCTIONS
    ]
    return _table(_translated(rows, say))


def levels(_: str, say: Callable[[str], str]) -> str:
    """Lists every ratio level with its log-ratio and the losses that use it."""
    rows = [("ratio level", "log-ratio", "used by")]
    rows += [
        (_code(k), f"${v.formula}$", _users(lambda loss, k=k: loss.ratio_level == k))
        for k, v in RATIO_LEVELS.items()
    ]
    return _table(_translated(rows, say))


def surrogates(_: str, say: Callable[[str], str]) -> str:
    """Lists every surrogate with its formula and the losses that use it."""
    rows = [("surrogate", r"$\ell$", "used by")]
    # A vertical bar would end a table's cell.
    shown = {k: s.formula.replace(r"\|", r"\Vert ").replace("|", r"\vert ") for k, s in SURROGATES.items()}
    rows += [
        (_code(k), f"${v}$", _users(lambda loss, k=k: loss.surrogate.name == k)) for k, v in shown.items()
    ]
    return _table(_translated(rows, say))


def _users(uses: Callable[[Loss], bool]) -> str:
    return ", ".join(f"`{name}`" for name in LOSSES if uses(compose(name))) or "—"


def formula(name: str) -> str:
    """Returns a loss in LaTeX, one block per line."""
    return "\n\n".join(f"$$\n{line}\n$$" for line in formula_lines(compose(name)))


TABLES: dict[str, Callable[[str, Callable[[str], str]], str]] = {
    table.__name__: table for table in (parts, family, reductions, levels, surrogates)
}


def generated(text: str, page: str, language: str) -> str:
    """Renews the generated regions of a page's `text`. Raises ValueError for an unknown marker."""

    def say(label: str) -> str:
        return LABELS[language].get(label, label)

    def renew(found: re.Match[str]) -> str:
        if found[2]:
            return f"<!-- formula -->\n\n{formula(page)}\n\n<!-- /formula -->"
        if found[1] not in TABLES:
            raise ValueError(f"{page}.md: there is no table {found[1]!r}; there are {', '.join(TABLES)}")
        return f"<!-- table:{found[1]} -->\n\n{TABLES[found[1]](page, say)}\n\n<!-- /table -->"

    return _REGION.sub(renew, text)


def pages() -> Iterator[tuple[Path, str]]:
    """Yields (page, language) of every page."""
    for language in LABELS:
        for path in sorted((DOCS / language).rglob("*.md")):
            yield path, language


def stale(languages: Iterable[str] = tuple(LABELS)) -> list[Path]:
    """Returns pages whose generated parts differ from what the code gives, and pictures that are missing."""
    old = [path for path in pictures() if not path.exists()]
    for path, language in pages():
        text = path.read_text(encoding="utf-8")
        if language in languages and generated(text, path.stem, language) != text:
            old.append(path)
    return old


def pictures() -> list[Path]:
    """Returns every picture that the pages show."""
    return [PICTURES / f"{name}.svg" for name in (*LOSSES, "overview", "reductions")]


def draw() -> None:
    """Draws all pictures. They have symbols only, so both languages share them."""
    from grpokit.commands.explain.axes import axes_of
    from grpokit.commands.explain.plots import loss_figure, save
    from grpokit.commands.explain.weights import weights_figure

    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in LOSSES:
        save(loss_figure(axes_of([compose(name)])[0]), PICTURES / f"{name}.svg")
    save(loss_figure(axes_of([compose(name) for name in OVERVIEW])[0]), PICTURES / "overview.svg")
    save(weights_figure(), PICTURES / "reductions.svg")


def main(arguments: list[str]) -> int:
    """Writes everything. With --check, compares tables and formulas exactly, and checks that the pictures exist."""
    if arguments == ["--check"]:
        old = stale()
        for path in old:
            print(f"stale: {path.relative_to(DOCS.parent)}; run python docs/build.py", file=sys.stderr)
        return 1 if old else 0
    for path, language in pages():
        text = path.read_text(encoding="utf-8")
        path.write_text(generated(text, path.stem, language), encoding="utf-8")
    draw()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
