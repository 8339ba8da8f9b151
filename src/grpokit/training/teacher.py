"""Teachers (on-policy distillation): the log-probs of the sampled tokens under other models."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..batch.plan import unweighted
from ..common.text import did_you_mean
from ..config.options import TrainConfig
from ..config.teacher_options import TEACHER_COLUMN, is_server, local_teachers, teachers_of
from ..parallel import World
from ..policy.learn import Learning, score
from ..policy.load import load_tokenizer
from ..policy.policy import Policy
from ..types import Prompt, Rollout, RolloutGroup, Sample
from .setup.models import check_reference, load_configured
from .teacher_server import TeacherServer

if TYPE_CHECKING:
    from .clock import Clock


@dataclass(frozen=True)
class Teachers:
    """A run's teachers by name; one without a name teaches every row. Example: `Teachers()` has none."""

    by_name: Mapping[str, Policy | TeacherServer] = field(default_factory=dict)

    def teach(self, groups: Sequence[RolloutGroup], how: Learning, clock: Clock) -> list[RolloutGroup]:
        """Adds `teacher_logps` [T] to the completions, 0 at tokens that aren't trained on. A collective.

        Without teachers the groups stay as they are. Raises ValueError where a row names a teacher that there isn't.

        Args:
            groups: the step's groups of all ranks.
            how: the settings of learning.
            clock: measures the time.

        Returns:
            The groups, in the same order.
        """
        if not self.by_name:
            return list(groups)
        with clock("teacher"):
            names = [self._name_of(group.prompt) for group in groups for _ in group.rollouts]
            found: dict[int, Tensor] = {}
            samples = unweighted(groups)
            for name, teacher in self.by_name.items():
                own = [sample for sample in samples if names[sample.index] == name]
                found |= _logps(teacher, own, how)
        rollouts = iter(
            _with_logps(rollout, found.get(index))
            for index, rollout in enumerate(r for group in groups for r in group.rollouts)
        )
        return [replace(group, rollouts=tuple(next(rollouts) for _ in group.rollouts)) for group in groups]

    def _name_of(self, prompt: Prompt) -> str:
        """Returns the name of a row's teacher. Raises ValueError where there is none of that name."""
        name = "" if "" in self.by_name else str(prompt.columns.get(TEACHER_COLUMN))
        if name not in self.by_name:
            raise ValueError(
                f"{prompt.source}: the column `{TEACHER_COLUMN}` names {name!r}{did_you_mean(name, self.by_name)}, and "
                f"--teacher has {', '.join(self.by_name)}"
            )
        return name


def _logps(teacher: Policy | TeacherServer, samples: Sequence[Sample], how: Learning) -> dict[int, Tensor]:
    """Scores samples under a teacher on all ranks: sample index → [T_i]."""
    if isinstance(teacher, TeacherServer):
        with how.world.together():
            own = teacher.score(how.world.share(samples))
        return how.world.gather_by_index(own)
    # Each sequence is a padded row: that is right for every architecture. Packing and shared prompts are not tried for it.
    return score(teacher, samples, replace(how, packed=False, share="never", router=None))


def _with_logps(rollout: Rollout, logps: Tensor | None) -> Rollout:
    whole = torch.zeros(len(rollout.completion_ids), dtype=torch.float32 if logps is None else logps.dtype)
    if logps is not None:
        whole[rollout.trainable] = logps.to(whole)
    return replace(rollout, teacher_logps=whole)


def check_teachers(config: TrainConfig, tokenizer: Any, columns: Collection[str]) -> None:
    """Checks before any weights are loaded what can be known then.

    Args:
        config: the run's configuration.
        tokenizer: the run's tokenizer.
        columns: the columns of the dataset.

    Raises:
        ValueError: teachers have names, and the rows don't; or a teacher that the run loads has another tokenizer.
    """
    if config.teacher and "" not in teachers_of(config.teacher) and TEACHER_COLUMN not in columns:
        raise ValueError(
            f"--teacher {' '.join(config.teacher)}: teachers with names need a column `{TEACHER_COLUMN}` in the dataset, which "
            "names that of each row"
        )
    for place in local_teachers(config.teacher):
        if load_tokenizer(place, config.trust_remote_code).get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"--teacher {place}: its tokenizer has other tokens than --model's, so the same token ids are another text to "
                "it; use a teacher with the same tokenizer"
            )


def load_teachers(
    config: TrainConfig, policy: Policy, tokenizer: Any, longest: int, world: World
) -> Teachers:
    """Loads the models that --teacher names; see also `check_teachers`.

    Args:
        config: the run's configuration.
        policy: the policy.
        tokenizer: the run's tokenizer.
        longest: the longest row of the run, in tokens.
        world: the ranks.

    Returns:
        The teachers.

    Raises:
        ValueError: a teacher can't be loaded, or has another vocabulary or a shorter context than the policy; or a server has
            another tokenizer.
    """
    found: dict[str, Policy | TeacherServer] = {}
    for name, place in teachers_of(config.teacher).items():
        if is_server(place):
            with world.together():
                server = TeacherServer(place, config.vllm_timeout)
                server.check(tokenizer, longest)
            found[name] = server
            continue
        teacher = load_configured(place, config, world, flag="--teacher").requires_grad_(False)
        check_reference(policy, teacher, place, "--teacher")
        found[name] = teacher
    return Teachers(found)
