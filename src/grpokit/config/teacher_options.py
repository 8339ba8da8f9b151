"""Options of a teacher, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..data.names import split_name
from .resume import steering
from .rules import Rule, has_model

TEACHER_COLUMN = "teacher"  # names a row's teacher, where there are several


@dataclass(frozen=True)
class TeacherOptions:
    """A teacher: on-policy distillation."""

    teacher: tuple[str, ...] = steering(())
    """Model directory, name on the Hub, or URL of a vLLM server: the loss adds the reverse KL to this model, on the sampled
    tokens. Give several as name=MODEL; a row's column `teacher` names its own. Without --reward_funcs it teaches alone."""
    teacher_coef: float | None = steering(None)
    """Coefficient of the reverse KL to the teacher, averaged over the update's tokens (default: 1)."""
    teacher_kl_gradient: Literal["k2", "ratio"] | None = steering(None)
    """Gradient of that KL, x = log(policy / teacher). k2: that of x²/2, unbiased on-policy. ratio: that of x times the
    importance ratio, unbiased in a step's later updates too (default: k2 with one update for each step, else ratio)."""


def is_server(teacher: str) -> bool:
    """Tells whether a value of --teacher, without its name, is the URL of a server."""
    return teacher.startswith(("http://", "https://"))


def teachers_of(values: tuple[str, ...]) -> dict[str, str]:
    """Returns name → model or URL of --teacher; a single one without a name has the name ""."""
    return dict(split_name(value) for value in values)


def teaches_alone(config: Any) -> bool:
    """Tells whether a run has a teacher, and no rewards beside it."""
    return len(config.teacher) > 0 and not (config.reward_funcs or config.environment)


def local_teachers(values: tuple[str, ...]) -> list[str]:
    """Returns the teachers that a run loads itself."""
    return [place for place in teachers_of(values).values() if not is_server(place)]


TEACHER_RULES = [
    Rule(
        "teacher",
        lambda c: len(c.teacher) < 2 or len(teachers_of(c.teacher).keys() - {""}) == len(c.teacher),
        "several teachers need a name each: --teacher math=MODEL code=MODEL, and the rows a column `teacher`",
    ),
    Rule(
        "teacher",
        lambda c: all(is_server(value) or has_model(value) for value in teachers_of(c.teacher).values()),
        "is neither a model with a config.json nor a URL (http://...)",
    ),
    Rule(
        "teacher_coef",
        lambda c: c.teacher_coef is None or c.teacher_coef > 0,
        "must be above 0; to train without the teacher, leave out --teacher",
    ),
    Rule(
        "temperature",
        lambda c: c.temperature == 1 or not any(map(is_server, teachers_of(c.teacher).values())),
        "a server tells the teacher's log-probs at temperature 1 alone; use --temperature 1, or a directory for --teacher",
    ),
    Rule(
        "max_resample_times",
        lambda c: c.max_resample_times == 0 or not teaches_alone(c),
        "chooses groups by their rewards, and there are none; add --reward_funcs, or leave it out",
    ),
    Rule(
        "eval_dataset",
        lambda c: not (teaches_alone(c) and c.eval_dataset) or len(c.eval_reward_funcs) > 0,
        "needs rewards to evaluate by; add --eval_reward_funcs",
    ),
]
