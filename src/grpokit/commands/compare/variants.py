"""Options to vary → variants: a grid on the command line, or a YAML file with a name for each."""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...config.checks import check_train_config
from ...config.flags import TRUTH
from ...config.hints import hint
from ...config.options import TrainConfig
from ...config.yaml import read_mapping, with_options

# Options that no variant may have, and why.
REFUSED = {
    "seed": "all variants share the seeds; --seeds N says how many, and --seed S the first",
    "output_dir": "each run gets its own directory within --output_dir",
    "resume_from_checkpoint": "a run that was stopped is resumed anyway",
    "config": "the base is one file; a variant is what differs from it",
    "push_to_hub": "publish a model once it is chosen",
    "run_name": "a run is named by its variant and its seed",
}


@dataclass(frozen=True)
class Variant:
    """A variant: a name, and the options that it changes in the base.

    Example:
        >>> Variant("loss_type=dapo,beta=0.1", {"loss_type": "dapo", "beta": 0.1}).folder
        'loss_type=dapo,beta=0.1'
    """

    name: str
    options: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """The name, made safe for a directory."""
        return re.sub(r"[^\w.,=@+-]+", "_", self.name).strip("._") or "variant"

    def config(self, base: TrainConfig) -> TrainConfig:
        """Returns the base with the variant's options."""
        return with_options(base, self.options, f"variant {self.name}: ")


def labels_of(options: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns name → display name: the value alone where all variants vary the same one option.

    Args:
        options: each variant's name → its options.

    Example:
        >>> labels_of({"beta=0.0": {"beta": 0.0}, "beta=0.1": {"beta": 0.1}})
        {'beta=0.0': '0.0', 'beta=0.1': '0.1'}
    """
    varied = {option for own in options.values() for option in own}
    short = len(varied) == 1 and all(name == name_of(own) for name, own in options.items())
    return {name: show_value(*own.values()) if short else name for name, own in options.items()}


def make_variants(vary: Sequence[str], file: str, base: TrainConfig) -> tuple[Variant, ...]:
    """Makes the variants of a comparison, and checks the configuration of each.

    Args:
        vary: items `option=value,value`; every combination is a variant.
        file: a YAML file of names and options; "" for none.
        base: what the variants change.

    Raises:
        ValueError: no variants, an option that there isn't or that may not vary, a value that it doesn't take, two equal
            variants, or one that could not train.

    Example:
        >>> from grpokit.config.options import TrainConfig
        >>> grid(["loss_type=grpo,dapo", "learning_rate=1e-5"], TrainConfig())[1].name
        'loss_type=dapo,learning_rate=1e-05'
    """
    if vary and file:
        raise ValueError(f"--variants {file}: takes the place of --vary; leave one of them out")
    if not vary and not file:
        raise ValueError(
            "--vary: is missing; say what to compare, such as --vary loss_type=grpo,dapo. (A comparison that is there goes on "
            "with --output_dir DIR, and --seeds, --jobs or --metric, alone.)"
        )
    variants = read_variants(file, base) if file else grid(vary, base)
    check_distinct(variants, base)
    for variant in variants:
        try:
            check_train_config(variant.config(base))
        except ValueError as error:
            raise ValueError(f"variant {variant.name}: {error}") from error
    return variants


def grid(vary: Sequence[str], base: TrainConfig) -> tuple[Variant, ...]:
    """Returns a variant for every combination of the values of `option=value,value` items."""
    axes: dict[str, list[Any]] = {}
    for item in vary:
        name, equals, values = item.partition("=")
        name, flag = name.removeprefix("--").replace("-", "_"), f"--vary {item}"
        if not equals:
            raise ValueError(f"{flag}: expected option=value,value, such as loss_type=grpo,dapo")
        if name in axes:
            raise ValueError(f"{flag}: {name} is varied twice; write its values behind one {name}=")
        _check_name(name, flag)
        axes[name] = [_value(text.strip(), name, flag, base) for text in values.split(",")]
    combinations = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return tuple(Variant(name_of(options), options) for options in combinations)


def read_variants(file: str, base: TrainConfig) -> tuple[Variant, ...]:
    """Returns the variants of a YAML file: name → {option: value}."""
    return variants_of(read_mapping(file, "--variants"), f"--variants {file}", base)


def variants_of(found: Mapping[str, Any], where: str, base: TrainConfig) -> tuple[Variant, ...]:
    """Returns the variants of a mapping name → {option: value}.

    Args:
        found: the mapping.
        where: where it is from, for messages.
        base: what the variants change.

    Raises:
        ValueError: it has another form, or an option that may not vary.
    """
    variants = []
    for name, options in found.items():
        if options is None:
            options = {}
        if not isinstance(options, Mapping):
            raise ValueError(
                f"{where}: {name}: expected the options that differ, as `option: value`; got {options!r}"
            )
        given = {str(option).replace("-", "_"): value for option, value in options.items()}
        for option in given:
            _check_name(option, f"{where}: {name}")
        config = with_options(base, given, f"{where}: {name}: ")
        variants.append(Variant(str(name), {option: getattr(config, option) for option in given}))
    return tuple(variants)


def check_distinct(variants: Iterable[Variant], base: TrainConfig) -> None:
    """Raises ValueError where two variants are the same run, or would have the same directory."""
    configs: dict[TrainConfig, str] = {}
    folders: dict[str, str] = {}
    for variant in variants:
        same = configs.setdefault(variant.config(base), variant.name)
        if same is not variant.name:
            raise ValueError(f"variants {same} and {variant.name}: are the same run; leave one of them out")
        same = folders.setdefault(variant.folder.lower(), variant.name)
        if same is not variant.name:
            raise ValueError(
                f"variants {same} and {variant.name}: would have the same directory, {variant.folder}; "
                "name them by --variants FILE"
            )


def name_of(options: Mapping[str, Any]) -> str:
    """Returns the name of a variant that has no other.

    Example:
        >>> name_of({"loss_type": "dapo", "epsilon": None, "shuffle": True, "stop": ("a", "b")})
        'loss_type=dapo,epsilon=none,shuffle=true,stop=a+b'
    """
    return ",".join(f"{option}={show_value(value)}" for option, value in options.items())


def show_value(value: Any) -> str:
    """Returns an option's value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    return str(value)


def _check_name(name: str, where: str) -> None:
    if name in REFUSED:
        raise ValueError(f"{where}: {name} cannot vary: {REFUSED[name]}")
    if name not in TrainConfig.__dataclass_fields__:
        raise ValueError(f"{where}: no option {name!r} of grpokit train{hint(name, TrainConfig)}")


def _value(text: str, name: str, where: str, base: TrainConfig) -> Any:
    """Reads a value as the flag of that name does."""
    options = {name: _plain(text, typing.get_type_hints(TrainConfig)[name])}
    return getattr(with_options(base, options, f"{where}: "), name)


def _plain(text: str, kind: Any) -> Any:
    """Converts true/false, none and the members of a Literal to their Python values; other values stay text."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(arg for arg in args if arg is not type(None))
        is_none = text.lower() in ("", "none", "null") and text not in typing.get_args(inner)
        return None if is_none else _plain(text, inner)
    if origin is Literal:
        return next((arg for arg in args if str(arg) == text), text)
    if origin is tuple and text.lower() in ("", "none"):
        return ()
    return TRUTH.get(text.lower(), text) if kind is bool else text


def differing_options(configs: Sequence[Mapping[str, Any]], apart_from: Iterable[str] = ()) -> list[str]:
    """Returns the options in which some configurations differ, in the order of `grpokit train --help`.

    Example:
        >>> differing_options([{"beta": 0.0, "seed": 1}, {"beta": 0.1, "seed": 2}], ["seed"])
        ['beta']
    """
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    names = [*known, *sorted({name for config in configs for name in config} - set(known))]
    left_out = set(apart_from)
    return [
        name
        for name in names
        if name not in left_out and any(config.get(name) != configs[0].get(name) for config in configs)
    ]
