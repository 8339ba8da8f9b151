"""Reads launch scripts: finds the command that trains, and turns its flags into options by name.

Handles continued lines, comments, quotes, assignments, arrays, `$NAME` and `${NAME:-default}`, launchers (accelerate,
torchrun, deepspeed, NPROC_PER_NODE), `--flag=value`, several values after one flag, and `--config file.yaml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config.conversion.draft import Trainer, listed
from .shell import VARIABLE, Command, read_commands

PROGRAMS: dict[tuple[str, str], Trainer] = {("swift", "rlhf"): "swift", ("trl", "grpo"): "trl"}
MODULES: dict[str, Trainer] = {"swift.cli.rlhf": "swift", "trl.scripts.grpo": "trl"}
# Flags of launchers that count processes.
PER_NODE = ("nproc_per_node", "nproc-per-node", "num_gpus", "NPROC_PER_NODE")
NODES = ("nnodes", "num_nodes", "NNODES")
NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Launch:
    """What a file says of a run. Example: `Launch({"beta": 0.1}, "trl", processes=8)`"""

    options: dict[str, Any]
    trainer: Trainer | None = None  # where the command tells
    processes: int | None = None  # as the launcher is told
    folder: Path = field(default_factory=Path)
    notes: tuple[str, ...] = ()


def read_launch(file: str) -> Launch:
    """Reads a YAML file, a launch script, or a command line.

    Args:
        file: the path, or the command line itself.

    Returns:
        The options, and what the launcher says.

    Raises:
        ValueError: nothing can be read, or no command trains by GRPO.
    """
    path = Path(file)
    if not _is_file(path):
        if " " in file.strip():
            return _from_script(file, "the command line", Path())
        raise ValueError(f"{file}: cannot be read as YAML or as a launch script: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if path.suffix in (".yaml", ".yml", ".json") or (path.suffix != ".sh" and not _looks_like_script(text)):
        options = read_yaml(path)
        return Launch(options, None, _processes(options), path.parent)
    return _from_script(text, file, path.parent)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a command line may be longer than any name
        return False


def _looks_like_script(text: str) -> bool:
    return text.startswith("#!") or re.search(r"(^|\s)--?[a-zA-Z]\w+", text) is not None


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads `name: value` lines. Raises ValueError where they are something else."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected `name: value` lines, got a {type(found).__name__}")
    return {str(name): value for name, value in found.items()}


def _from_script(text: str, where: str, folder: Path) -> Launch:
    """Finds the command that trains."""
    found = [launch for command in read_commands(text) if (launch := _training(command, folder)) is not None]
    if not found and re.search(r"\bmegatron\s+rlhf\b", text):
        raise ValueError(
            f"{where}: `megatron rlhf` has Megatron's options, which are not converted; `swift rlhf` has others"
        )
    if not found:
        raise ValueError(
            f"{where}: no command trains by GRPO; expected `swift rlhf --rlhf_type grpo`, `trl grpo`, or a launcher with "
            "script.py and flags, or a YAML file"
        )
    for launch in found:
        kind = launch.options.get("rlhf_type", "grpo")
        if kind != "grpo":
            raise ValueError(f"{where}: --rlhf_type {kind}: is not GRPO, so grpokit has no such run")
    first, *others = found
    if others:
        first = Launch(
            **{**vars(first), "notes": (*first.notes, f"{len(found)} commands train; the first is taken")}
        )
    return first


def _training(command: Command, folder: Path) -> Launch | None:
    """Reads a command that trains, or returns None."""
    words = list(command.words)
    program = _program(words)
    if program is None:
        inner = [
            w for w in words if " " in w and re.search(r"\b(accelerate|torchrun|swift|trl|python3?)\b", w)
        ]
        launches = (_training(c, folder) for text in inner for c in read_commands(text))
        return next((launch for launch in launches if launch is not None), None)
    start, end, trainer = program
    options, stray = parse_flags(words[end:])
    stray_yaml = [word for word in stray if word.endswith((".yaml", ".yml", ".json"))]
    notes = list(command.notes)
    config = options.pop("config", None) or (stray_yaml[0] if trainer == "swift" and stray_yaml else None)
    if config is not None:
        options = _below(options, str(config), folder, notes)
    elif trainer is None and not any(
        name in options for name in ("model_name_or_path", "model", "dataset_name")
    ):
        return None  # a script that serves, evaluates or prepares
    for name, value in options.items():
        if any("$(" in str(part) or VARIABLE.fullmatch(str(part)) for part in listed(value)):
            notes.append(f"{name}: {value}: what the shell puts there isn't known here; set --{name}")
    launcher, _ = parse_flags(words[:start])
    return Launch(
        options,
        trainer,
        _processes({**command.environment, **launcher}, folder) or _processes(options),
        folder,
        tuple(notes),
    )


def _program(words: Sequence[str]) -> tuple[int, int, Trainer | None] | None:
    """Finds a program: where it stands, where its flags begin, and whose it is (None: the flags tell)."""
    for place, word in enumerate(words):
        name, following = word.rsplit("/", 1)[-1], words[place + 1] if place + 1 < len(words) else ""
        if (name, following) in PROGRAMS:
            return place, place + 2, PROGRAMS[name, following]
        if word == "-m" and following in MODULES:
            return place, place + 2, MODULES[following]
        if name == "rlhf.py" and "swift" in word:
            return place, place + 1, "swift"
        if name.endswith(".py") and name not in ("deploy.py", "rollout.py", "infer.py"):
            return place, place + 1, None
    return None


def _below(options: dict[str, Any], config: str, folder: Path, notes: list[str]) -> dict[str, Any]:
    """Lays a command's flags over the YAML file that it names."""
    for path in (Path(config), folder / config, *(parent / config for parent in folder.resolve().parents)):
        if path.is_file():
            return read_yaml(path) | options
    notes.append(f"config: {config}: no such file from here; only the flags of the command are converted")
    return options


def parse_flags(words: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """Turns `--name value`, `--name=value`, `--name a b` and `--name` into options. Returns them, and words before any.

    Example:
        >>> parse_flags(["--beta", "0.1", "--reward_funcs", "a", "b", "--bf16", "--max_steps=-1"])[0]
        {'beta': 0.1, 'reward_funcs': ['a', 'b'], 'bf16': True, 'max_steps': -1}
    """
    found: dict[str, list[Any]] = {}
    stray: list[str] = []
    name = ""
    for word in words:
        if word.startswith("-") and len(word) > 1 and not NUMBER.fullmatch(word):
            flag, equals, value = word.lstrip("-").partition("=")
            name = flag.replace("-", "_")
            found[name] = [parse_value(value)] if equals else []
        elif name:
            found[name].append(parse_value(word))
        else:
            stray.append(word)
    options: dict[str, Any] = {}
    for flag, values in found.items():
        if not values and flag.startswith("no_"):
            options[flag.removeprefix("no_")] = False
        else:
            options[flag] = True if not values else values[0] if len(values) == 1 else values
    return options, stray


def parse_value(text: str) -> Any:
    """Reads a value as a number, true, false, none or JSON, else as text.

    Example:
        >>> parse_value("1e-6"), parse_value("true"), parse_value("[1, 2]"), parse_value("a:b")
        (1e-06, True, [1, 2], 'a:b')
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    if NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _processes(told: dict[str, Any], folder: Path | None = None) -> int | None:
    """Reads the number of processes from a launcher's flags, its YAML file or the environment."""
    count = _number(told.get("num_processes"))
    if "num_processes" in told and folder is None:
        told.pop("num_processes")  # an option of `trl grpo`'s file, for accelerate
    if count:
        return count
    each = next((n for key in PER_NODE if (n := _number(told.get(key.replace("-", "_"))))), None)
    nodes = next((n for key in NODES if (n := _number(told.get(key)))), 1)
    if each:
        return each * nodes
    config = told.get("config_file", told.get("accelerate_config"))
    for path in [] if config is None or folder is None else [Path(str(config)), folder / str(config)]:
        if path.is_file():
            return _number(read_yaml(path).get("num_processes"))
    return None


def _number(value: Any) -> int | None:
    text = str(value).split(":")[0]  # torchrun's --nnodes 1:4
    return int(text) if text.isdigit() and int(text) > 0 else None
