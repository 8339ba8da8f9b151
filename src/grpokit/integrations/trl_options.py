"""TRL's GRPOConfig → a loss of grpokit's, with TRL's meaning and defaults; and what can't work together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ..config.conversion.correction import convert_correction
from ..config.conversion.draft import Draft
from ..config.conversion.losses import LOSSES, convert_loss
from ..config.foreign import RENAMED
from ..config.foreign_defaults import TRL_CONFIG
from ..losses import Loss, loss_options, make_loss
from ..training.setup.loss import LOSS_OPTIONS


def loss_from_trl(args: Any, loss: str | Loss | None = None, kwargs: Mapping[str, Any] | None = None) -> Loss:
    """Makes the loss that a GRPOConfig describes.

    TRL's own losses take their options with TRL's defaults. The other losses have their papers' defaults, and take the
    options of the GRPOConfig that aren't at TRL's default.

    Args:
        args: a GRPOConfig.
        loss: a key of LOSSES (None: `args.loss_type`), or a Loss, which is taken as it is.
        kwargs: options of `make_loss` that a GRPOConfig lacks. They replace those of `args`.

    Raises:
        ValueError: an option has no meaning with the loss, or a value that can't work.
    """
    kwargs = dict(kwargs or {})
    if isinstance(loss, Loss):
        if kwargs:
            raise ValueError(
                f"loss_kwargs {', '.join(kwargs)}: grpokit_loss is a Loss, which has its options; give them to make_loss"
            )
        return loss
    theirs = {name: value for name, value in vars(args).items() if not name.startswith("_")}
    name = str(theirs["loss_type"] if loss is None else loss)
    theirs |= {"loss_type": name} | {key: value for key, value in kwargs.items() if key in theirs}
    draft = Draft.of(theirs, "trl")
    convert_loss(draft)
    convert_correction(draft, bool(theirs.get("use_vllm")))
    ours = draft.ours
    if "max_grad_norm" in ours:  # a cap below 1, which convert-config expresses by the optimizer's options
        _refuse_cap(name, theirs)
    options = {key: ours[key] for key in LOSS_OPTIONS if key in ours}
    options["ratio_level"] = ours.get("importance_sampling_level")
    options |= {
        key: float(value) for key, _, value in (item.partition("=") for item in ours.get("loss_kwargs", ()))
    }
    if name not in LOSSES["trl"]:
        options |= _changed(theirs, loss_options(name))
    options |= kwargs
    name = ours["loss_type"]
    if "max_completion_length" in loss_options(name, options.get("reduction")):
        options.setdefault("max_completion_length", theirs["max_completion_length"])
    return make_loss(name, **options)


def _refuse_cap(name: str, theirs: Mapping[str, Any]) -> None:
    """Raises the error of `make_loss`, with the option of a GRPOConfig that sets the cap."""
    try:
        make_loss(name, epsilon_high=theirs["epsilon_high"] or theirs["epsilon"])
    except ValueError as error:
        raise ValueError(f"{error}: set GRPOConfig(epsilon_high=5.0)") from error


def _changed(theirs: Mapping[str, Any], takes: Collection[str]) -> dict[str, Any]:
    """Returns the options of a loss that TRL lacks: those that aren't at TRL's default. `takes`: what the loss has."""
    known = ("epsilon", "epsilon_high", "delta", "sapo_temperature_pos", "sapo_temperature_neg")
    defaults = TRL_CONFIG | {"sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05}
    changed = {
        RENAMED.get(key, key): theirs[key]
        for key in known
        if theirs.get(key) is not None and theirs[key] != defaults.get(key)
    }
    if (
        "epsilon" in changed and "epsilon_high" in takes and "epsilon_high" not in changed
    ):  # TRL's meaning of epsilon_high=None
        changed["epsilon_high"] = changed["epsilon"]
    level = theirs.get("importance_sampling_level", "token")
    return changed if level == "token" else changed | {"ratio_level": level}


def check_with_trl(args: Any, loss: Loss, has_sampler: bool) -> None:
    """Checks that TRL's trainer can compute the loss with these options.

    Args:
        args: a GRPOConfig.
        loss: the loss.
        has_sampler: whether completions come with the sampler's log-probs.

    Raises:
        ValueError: they don't go together. The message names a value that works.
    """
    check_window(args.gradient_accumulation_steps, args.steps_per_generation)
    if loss.beta != args.beta:
        raise ValueError(
            f"beta {loss.beta:g}: is the loss's, and GRPOConfig's is {args.beta:g}, by which TRL decides whether to load a "
            f"reference model; set GRPOConfig(beta={loss.beta:g})"
        )
    if loss.teacher_coef:
        raise ValueError(
            f"teacher_coef {loss.teacher_coef:g}: TRL's GRPOTrainer has no teacher; leave it out, or train with grpokit's trainer"
        )
    if args.use_adaptive_entropy:
        raise ValueError(
            "use_adaptive_entropy: changes the entropy bonus during the run, which grpokit's losses don't; set entropy_coef, or "
            "leave it out"
        )
    if loss.rejected_tokens == "drop":
        raise ValueError(
            "rejected_tokens drop: is not available inside TRL, where denominators are fixed before tokens are rejected; "
            "leave it at keep"
        )
    by_sampler = loss.correction is not None or loss.surrogate.anchor == "sampler"
    if by_sampler and not has_sampler:
        raise ValueError(
            f"{loss.name}: compares the policy with the sampler's log-probs, and the sampler is the model itself here; set "
            "GRPOConfig(use_vllm=True), or choose another loss or no correction"
        )
    by_group = loss.surrogate.needs_update == "group" or loss.reduction == "prompt_mean"
    if by_group and args.steps_per_generation != args.gradient_accumulation_steps:
        raise ValueError(
            f"{loss.name}: needs whole groups, and TRL shuffles the completions of {args.steps_per_generation} micro-batches "
            f"(steps_per_generation) over optimizer steps of {args.gradient_accumulation_steps} "
            f"(gradient_accumulation_steps); set steps_per_generation to {args.gradient_accumulation_steps}"
        )


def check_window(accumulation: int, generation: int) -> None:
    """Checks that every optimizer step is inside one batch of completions, where it can be counted before it begins.

    Args:
        accumulation: gradient_accumulation_steps, the micro-batches of an optimizer step.
        generation: steps_per_generation, the micro-batches that are generated together.

    Raises:
        ValueError: some optimizer step has micro-batches of two batches of completions.

    Example:
        >>> check_window(2, 4)
        >>> check_window(3, 4)
        Traceback (most recent call last):
        ...
        ValueError: gradient_accumulation_steps 3: ...
    """
    if generation % accumulation == 0:
        return
    divisors = [str(n) for n in range(1, generation + 1) if generation % n == 0]
    several = f"{', '.join(divisors[:-1])} or {divisors[-1]}" if len(divisors) > 1 else divisors[0]
    raise ValueError(
        f"gradient_accumulation_steps {accumulation}: an optimizer step would have micro-batches of several generations of "
        f"{generation} (steps_per_generation), and its tokens couldn't be counted before it begins; set "
        f"gradient_accumulation_steps to {several}, or steps_per_generation to {accumulation} or {2 * accumulation}"
    )
