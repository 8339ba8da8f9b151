"""A comparison's runs: which there are, where each is written, and which are finished. `compare.yaml` keeps the plan."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.options import TrainConfig
from ...config.resume import options_with
from ...config.yaml import read_mapping, to_yaml, with_options
from .variants import REFUSED, Variant, check_distinct, labels_of, show_value, variants_of

FILE = "compare.yaml"
SEEDS = 5
TAIL = 1 << 16  # bytes at the end of metrics.jsonl, which hold several lines
# A plan's base may change in these: they change no result.
FREE = options_with(TrainConfig, ["free"])


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Example:
        >>> run = PlannedRun(Variant("a", {}), "a", 42, Path("runs/compare/a/seed-42"), TrainConfig())
        >>> run.log.name, run.name
        ('seed-42.log', 'a, seed 42')
    """

    variant: Variant
    label: str  # the variant's display name
    seed: int
    directory: Path
    config: TrainConfig  # the run's own, with its seed and its directory

    @property
    def name(self) -> str:
        """The run's display name."""
        return f"{self.label}, seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file that gets what the run prints."""
        return self.directory.with_name(self.directory.name + ".log")

    def is_finished(self) -> bool:
        """Tells whether the run has trained to its end and written its model."""
        if not (self.directory / "final").is_dir():
            return False
        ends_early = self.config.early_stop or self.config.num_train_epochs
        return bool(ends_early) or last_step(self.directory) >= self.config.max_steps

    def has_checkpoint(self) -> bool:
        """Tells whether there is a checkpoint to go on from."""
        return any((path / "trainer").is_dir() for path in self.directory.glob("checkpoint-*"))

    def begin_again(self) -> None:
        """Deletes what the run has written: it was stopped, and has no checkpoint to go on from."""
        if self.directory.exists():
            shutil.rmtree(self.directory)


def last_step(directory: Path) -> int:
    """Returns the last step of a run's metrics; 0 before the first."""
    file = directory / "metrics.jsonl"
    if not file.is_file():
        return 0
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - TAIL))
        lines = opened.read().decode("utf-8", errors="replace").splitlines()
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError):  # a line that is being written, or the rest of one
            continue
    return 0


@dataclass(frozen=True)
class Plan:
    """A comparison that is to be made: every variant with every seed.

    Example:
        >>> plan = Plan(TrainConfig(), (Variant("a", {}), Variant("b", {"beta": 0.1})), (1, 2), Path("runs/ab"))
        >>> [run.name for run in plan.runs()]
        ['a, seed 1', 'b, seed 1', 'a, seed 2', 'b, seed 2']
    """

    base: TrainConfig
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    output: Path

    def runs(self) -> list[PlannedRun]:
        """Returns all runs: every variant with one seed, then with the next, so that a part of them is balanced."""
        return [self._run(variant, seed) for seed in self.seeds for variant in self.variants]

    @property
    def labels(self) -> dict[str, str]:
        """The variants' names → their display names."""
        return labels_of({variant.name: variant.options for variant in self.variants})

    def _run(self, variant: Variant, seed: int) -> PlannedRun:
        directory = self.output / variant.folder / f"seed-{seed}"
        own = {"seed": seed, "output_dir": str(directory), "run_name": f"{variant.name}, seed {seed}"}
        config = dataclasses.replace(variant.config(self.base), **own)
        return PlannedRun(variant, self.labels[variant.name], seed, directory, config)

    def save(self) -> None:
        """Writes the plan to compare.yaml."""
        import yaml

        values = {
            "seeds": list(self.seeds),
            "variants": {variant.name: _plain(variant.options) for variant in self.variants},
            "base": _base_values(self.base),
        }
        self.output.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        temporary = self.output / f"{FILE}.writing"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.output / FILE)


def load_plan(output: Path) -> Plan:
    """Reads the plan of a comparison from its directory.

    Raises:
        ValueError: there is no compare.yaml, or it is not a plan.
    """
    path, where = output / FILE, f"--output_dir {output}: {FILE}"
    values = read_mapping(str(path), "--output_dir")
    seeds, variants, options = (values.get(name) for name in ("seeds", "variants", "base"))
    if not (isinstance(seeds, list) and isinstance(variants, dict) and isinstance(options, dict)):
        raise ValueError(f"{where}: expected seeds, variants and base, as `grpokit compare` writes them")
    base = with_options(TrainConfig(), {str(k): v for k, v in options.items()}, f"{where}: base: ")
    return Plan(base, variants_of(variants, where, base), tuple(int(seed) for seed in seeds), output)


def make_plan(base: TrainConfig, variants: Sequence[Variant], num_seeds: int | None, output: Path) -> Plan:
    """Makes a plan, and extends the one that its directory has.

    Args:
        base: what the variants change; its seed is the first one.
        variants: the variants.
        num_seeds: how many seeds each gets; None: those of the plan that is there, else 5.
        output: the comparison's directory.

    Raises:
        ValueError: too few seeds, or the directory holds runs of another comparison.
    """
    if num_seeds is not None and num_seeds < 1:
        raise ValueError(f"--seeds {num_seeds}: must be at least 1; five or more can tell variants apart")
    before = load_plan(output) if (output / FILE).is_file() else None
    if before is None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(
            f"--output_dir {output}: is not empty and holds no comparison ({FILE}); name another directory"
        )
    count = num_seeds or (SEEDS if before is None else len(before.seeds))
    plan = Plan(base, tuple(variants), tuple(range(base.seed, base.seed + count)), output)
    return plan if before is None else _extend(before, plan)


def _extend(before: Plan, plan: Plan) -> Plan:
    """Returns the plan with the runs of the earlier one. Raises ValueError where they are not of one comparison."""
    old, new = _base_values(before.base), _base_values(plan.base)
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in FREE]
    if changed:
        changes = ", ".join(
            f"{name}: {show_value(old.get(name))} → {show_value(new.get(name))}" for name in changed
        )
        raise ValueError(
            f"--output_dir {plan.output}: holds a comparison with another base ({changes}); put it back, or name another "
            "directory"
        )
    variants = {variant.name: variant for variant in before.variants}
    for variant in plan.variants:
        known = variants.setdefault(variant.name, variant)
        if _plain(known.options) != _plain(variant.options):
            raise ValueError(
                f"--output_dir {plan.output}: has a variant {variant.name} with other options "
                f"({_plain(known.options)}, now {_plain(variant.options)}); give this one another name"
            )
    check_distinct(variants.values(), plan.base)
    seeds = tuple(sorted({*before.seeds, *plan.seeds}))
    return Plan(plan.base, tuple(variants.values()), seeds, plan.output)


def check_base(base: TrainConfig) -> None:
    """Raises ValueError for an option that the runs of a comparison cannot have in common."""
    for name in ("resume_from_checkpoint", "push_to_hub"):
        if value := getattr(base, name):
            raise ValueError(f"--{name} {value}: leave it out: {REFUSED[name]}")


def _base_values(base: TrainConfig) -> dict[str, Any]:
    """Returns the options of the base by name, as YAML gives them back, without those that are a run's own."""
    import yaml

    values = yaml.safe_load(to_yaml(base))
    return {name: value for name, value in values.items() if name not in REFUSED or name == "seed"}


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options with lists for tuples, because YAML has no tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
