"""Makes the loss and the LoRA adapter that a configuration names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ...common.text import name_and_value
from ...config.options import TrainConfig
from ...config.sampled import sampled_from, shaping_flags
from ...config.teacher_options import teaches_alone
from ...losses import Loss, loss_options, make_loss
from ...losses.family import COMMON_OPTIONS, follows_sampler
from ...losses.loss import TEACHER_FORMULA
from ...policy.lora import Lora

# Options passed to `make_loss`. None means the loss's own default; an option that the loss doesn't use is an error.
LOSS_OPTIONS = (
    "surrogate",
    "reduction",
    "ratio_level",
    "epsilon",
    "epsilon_high",
    "epsilon_low_cap",
    "delta",
    "tau_pos",
    "tau_neg",
    "sapo_gain",
    *COMMON_OPTIONS,
)


def loss_from_config(config: TrainConfig) -> Loss:
    """The configured loss. Raises ValueError where an option is given that it does not use.

    Rollouts that are a step old are corrected by token truncation, unless `correction_mode` is set, the loss already takes its
    ratio against the sampler, or the sampler's log-probs are of another distribution.
    """
    options: dict[str, Any] = {name: getattr(config, name) for name in LOSS_OPTIONS}
    options["correction_normalize"] = config.correction_normalize or None
    options["ratio_level"] = config.ratio_level or config.importance_sampling_level
    with _naming_flags():
        if "max_completion_length" in loss_options(config.loss_type, config.reduction):
            options["max_completion_length"] = config.max_completion_length
    if config.teacher:
        several = config.num_iterations * config.updates_per_step > 1
        options["teacher_coef"] = 1.0 if config.teacher_coef is None else config.teacher_coef
        options["teacher_kl_gradient"] = config.teacher_kl_gradient or ("ratio" if several else "k2")
    if config.kl_in_reward:  # beta is the reward's
        options["beta"] = 0.0
    kwargs = _loss_kwargs(config, options)
    with _naming_flags():
        if config.correction_mode == "none":
            if config.correction is not None:
                raise ValueError(
                    f"correction {config.correction}: corrects, and --correction_mode none does not; leave one of them out"
                )
            options["correction_mode"] = None
        elif (
            config.async_depth
            and config.correction is None
            and sampled_from(config) == "full"
            and not follows_sampler(config.loss_type, config.surrogate)
        ):
            options["correction_mode"] = config.correction_mode or "truncate"
        return make_loss(config.loss_type, **options, **kwargs)


@contextmanager
def _naming_flags() -> Iterator[None]:
    """Turns the names of options, with which the messages of `make_loss` begin, into flags."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--{error}") from error


def objective_of(config: TrainConfig, loss: Loss | None = None) -> tuple[str, str]:
    """Describes what a run minimises: its parts and options, and its formula in LaTeX, one line per part.

    Args:
        config: the configuration.
        loss: its loss, where it is made already.
    """
    loss = loss or loss_from_config(config)
    if not teaches_alone(config):
        return str(loss), loss.formula
    options = f"teacher_coef {loss.teacher_coef:g}, teacher_kl_gradient {loss.teacher_kl_gradient}"
    return f"reverse KL to the teacher, mean over tokens ({options})", f"L = {TEACHER_FORMULA}"


def checked_loss(config: TrainConfig) -> Loss:
    """Makes the configured loss, and raises ValueError where another option does not go with it."""
    loss = loss_from_config(config)
    if loss.needs_sampler and sampled_from(config) != "full":
        needs = f"--loss_type {loss.name}" + (f" --surrogate {config.surrogate}" if config.surrogate else "")
        if loss.correction is not None:
            needs = (
                f"--correction {config.correction}"
                if config.correction
                else f"--correction_mode {loss.correction.mode}"
            )
        elif loss.opsm_threshold is not None:
            needs = f"--opsm_threshold {loss.opsm_threshold:g}"
        raise ValueError(
            f"{shaping_flags(config)}: completions then come from another distribution than the one that is trained, and "
            f"{needs} compares the two; leave one of them out"
        )
    if config.turn_discount is not None and (loss.one_advantage or loss.opsm_threshold is not None):
        one = loss.name if loss.one_advantage else f"--opsm_threshold {loss.opsm_threshold:g}"
        raise ValueError(
            f"--turn_discount {config.turn_discount:g}: gives the turns advantages of their own, and {one} needs one for a "
            "sequence; use --loss_type gspo_token, or a loss of tokens such as dapo"
        )
    undivided = (
        config.advantage_estimator == "group" and (config.scale_rewards or loss.scale_rewards) == "none"
    )
    if undivided and config.advantage_epsilon != 1e-4:
        raise ValueError(
            f"--advantage_epsilon {config.advantage_epsilon:g}: does nothing with --loss_type {loss.name}, whose advantages "
            "aren't divided; leave it out"
        )
    if config.scale_rewards == "group" and loss.scale_rewards == "none":
        raise ValueError(
            f"--scale_rewards group: {loss.name} is the loss that leaves advantages unscaled; leave the flag out, or "
            "use --loss_type grpo"
        )
    return loss


def lora_from_config(config: TrainConfig, base: str | None = None) -> Lora | None:
    """Makes the configured adapter; None where all weights are trained. `base` names the model (None: --model)."""
    if not config.lora_r:
        return None
    return Lora(
        config.lora_r,
        config.lora_alpha,
        config.lora_target_modules,
        config.model if base is None else base,
        config.seed,
        config.load_in_4bit,
        rank_stabilized=config.use_rslora,
        dora=config.use_dora,
        whole_modules=config.lora_modules_to_save,
    )


def _loss_kwargs(config: TrainConfig, taken: Mapping[str, Any]) -> dict[str, Any]:
    """--loss_kwargs name=value as numbers where they are numbers. Raises ValueError naming the malformed item."""
    found: dict[str, Any] = {}
    for item in config.loss_kwargs:
        name, text = name_and_value(item, "--loss_kwargs", "fipo_gamma=0.98")
        if name in taken:
            raise ValueError(f"--loss_kwargs {item}: has a flag of its own, --{name}")
        try:
            found[name] = float(text)
        except ValueError:
            found[name] = text
    return found
