"""Converts the loss, its terms and masks, and the advantages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .draft import Draft, shown

# Losses that average over completions. TRL and ms-swift count filtered completions too; grpokit counts those it trains on.
OVER_COMPLETIONS = ("grpo", "dr_grpo", "sapo", "luspo")
VESPO = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
NO_BOUND = 1e9  # above e^20, where log-ratios are clamped


def convert_loss(draft: Draft) -> None:
    """Converts the loss with its options, the advantages, the KL penalty and the masks."""
    name = draft.take("loss_type")
    name = name[0] if isinstance(name, list) and len(name) == 1 else name
    level = draft.take_word("importance_sampling_level", "token")
    rule = LOSSES[draft.trainer].get(str(name))
    if rule is None:
        draft.say(
            f"loss_type: {shown(name)} is no loss of {draft.name}'s; grpokit's of that name, if there is one"
        )
        draft.put("loss_type", name)
    else:
        rule(draft, str(name), level)
    _advantages(draft, str(name))
    _kl(draft, level)
    _masks(draft, str(name))
    _router(draft)
    for option in _options_of_other_losses(draft):
        value = draft.take(option)
        if option in draft.given:
            draft.say(f"{option}: {shown(value)} does nothing with loss_type {name}, there either; left out")


def _options_of_other_losses(draft: Draft) -> list[str]:
    names = ("epsilon", "epsilon_high", "delta", "real_tau", "tau_pos", "tau_neg", *VESPO)
    more = ("sapo_temperature_pos", "sapo_temperature_neg")
    return [
        name
        for name in (*names, *more, *sorted(draft.left))
        if name in draft.left and (name in names or name in more or name.startswith("fipo_"))
    ]


def _level(draft: Draft, level: Any) -> None:
    if level != "token":
        draft.put("importance_sampling_level", level)


def _clip(draft: Draft, name: str, level: Any) -> None:
    """grpo, bnpo, dapo: the clip range above 1 is epsilon where it isn't set, for dapo too."""
    draft.put("loss_type", name)
    _clip_range(draft)
    _level(draft, level)
    if name == "bnpo":
        draft.say(
            f"loss_type: bnpo averages the tokens of each micro-batch in {draft.name}, so it follows the batch sizes; "
            "here those of each rank"
        )


def _clip_range(draft: Draft) -> None:
    epsilon = draft.take("epsilon", 0.2)
    draft.put("epsilon", epsilon)
    draft.put("epsilon_high", draft.take("epsilon_high", epsilon), "epsilon_high", "epsilon")
    delta = draft.take("delta")
    if delta is not None:
        draft.put("delta", delta)


def _dr_grpo(draft: Draft, name: str, level: Any) -> None:
    """dr_grpo: their advantages are divided by the group's std unless scale_rewards says otherwise."""
    _clip(draft, name, level)
    if _scaling(draft.left.get("scale_rewards", "group")) == "group":
        draft.put("loss_type", "grpo", "loss_type")
        draft.put("reduction", "constant_length", "loss_type")
        draft.say(
            f"loss_type: dr_grpo's advantages are divided by the group's std in {draft.name} unless scale_rewards is "
            "false: written as grpo with reduction constant_length. The paper's is loss_type dr_grpo alone"
        )


def _cispo(draft: Draft, name: str, level: Any) -> None:
    """Converts cispo. A cap below 1 makes it cap × the policy gradient, so it is written as `reinforce` with scaled options."""
    epsilon = draft.take_number("epsilon", 0.2)
    cap = draft.take_number("epsilon_high", epsilon) or 0.2
    if cap >= 1:
        draft.put("loss_type", name)
        draft.put("epsilon_high", cap)
        _level(draft, level)
        return
    draft.put("loss_type", "reinforce", "loss_type")
    times = 1 / cap
    for option, default in (("max_grad_norm", 1.0), ("adam_epsilon", 1e-8)):
        draft.put(option, _scaled(draft.take_number(option, default), times), "loss_type")
    for option in ("beta", "entropy_coef"):
        draft.left[option] = _scaled(draft.take_number(option), times)
    draft.say(
        f"loss_type: cispo caps the ratio at epsilon_high, which is {cap:g} in {draft.name}"
        f"{'' if 'epsilon_high' in draft.given else ' where it is not set (epsilon)'}: a ratio of 1 is above it, so the "
        f"loss is {cap:g} × the plain policy gradient, but for ratios below {cap:g}. Written as loss_type reinforce, with "
        f"max_grad_norm, adam_epsilon, beta and entropy_coef × {times:g}, which gives AdamW the same steps. "
        "The paper's loss is loss_type cispo with epsilon_high 5"
    )


def _scaled(value: float | None, times: float) -> float:
    return float(f"{(value or 0.0) * times:.12g}")  # 5e-08, not 4.9999999999999996e-08


def _sapo(draft: Draft, name: str, level: Any) -> None:
    draft.put("loss_type", name)
    _level(draft, level)
    for ours, theirs in (("tau_pos", "sapo_temperature_pos"), ("tau_neg", "sapo_temperature_neg")):
        value = draft.take(theirs, draft.take(ours))
        if value is not None:
            draft.put(ours, value, ours, theirs)


def _luspo(draft: Draft, name: str, level: Any) -> None:
    """Converts luspo. The default of TRL and ms-swift is the ratio of a token, with epsilon 0.2."""
    if level == "sequence":
        draft.put("loss_type", name)
    else:
        draft.put("loss_type", "grpo", "loss_type")
        draft.put("reduction", "sequence_sum", "loss_type")
        draft.say(
            f"loss_type: luspo has the ratio of a token in {draft.name} unless importance_sampling_level is sequence: "
            "written as grpo with reduction sequence_sum. The paper's is loss_type luspo with its own epsilon, 0.002"
        )
    _clip_range(draft)


def _vespo(draft: Draft, name: str, level: Any) -> None:
    draft.put("loss_type", name)
    options = {option: draft.take(option) for option in VESPO}
    _kwargs(draft, {option: value for option, value in options.items() if value is not None})
    if level != "token":
        draft.unsupported(
            "importance_sampling_level", level, "does nothing with loss_type vespo, there either"
        )


def _kwargs(draft: Draft, options: dict[str, Any]) -> None:
    """Puts options that have no flag of their own."""
    if options:
        draft.put("loss_kwargs", [f"{option}={value}" for option, value in options.items()], "loss_type")


def _real(draft: Draft, name: str, level: Any) -> None:
    """Converts real. Advantages are never scaled, and completions are labelled by the sign of the advantage."""
    draft.put("loss_type", name)
    tau = draft.take("real_tau")
    _kwargs(draft, {} if tau is None else {"real_tau": tau})
    scaling = draft.take("scale_rewards")
    if scaling not in (None, "none"):
        draft.say("scale_rewards: none, whatever the file says: real's advantages are never scaled there")
    draft.left["scale_rewards"] = "none"
    if level != "token":
        draft.unsupported(
            "importance_sampling_level", level, "does nothing with loss_type real, there either"
        )


def _fipo(draft: Draft, name: str, level: Any) -> None:
    draft.put("loss_type", name)
    _clip_range(draft)
    if level != "token":
        draft.unsupported("importance_sampling_level", level, "is not defined for loss_type fipo here")
    rate, safe = draft.take_number("fipo_decay_rate"), draft.take_number("fipo_safety_threshold")
    width, high_only = draft.take_number("fipo_clip_range"), draft.take_flag("fipo_clip_high_only", True)
    options: dict[str, Any] = {}
    if rate is not None:
        options["fipo_gamma"] = 2 ** (-1 / rate)
    if width is not None:
        options["fipo_high"] = 1 + width if width else NO_BOUND
        options["fipo_low"] = 0.0 if not width else 1.0 if high_only else 1 - width
    elif not high_only:
        options["fipo_low"] = 0.8
    if safe is not None:
        options["fipo_safe_ratio"] = safe
    _kwargs(draft, options)


def _scaling(value: Any) -> Any:
    """Returns scale_rewards as a word: older files have true and false."""
    words = {True: "group", False: "none", "true": "group", "false": "none", "True": "group", "False": "none"}
    return words.get(value, value) if isinstance(value, bool | str) else value


def _advantages(draft: Draft, loss: str) -> None:
    """Converts the estimator and the scaling of the rewards."""
    scaling, estimator = _scaling(draft.take("scale_rewards")), draft.take_word("advantage_estimator", "grpo")
    together = draft.take_word("multi_objective_aggregation", "sum_then_normalize")
    if together == "normalize_then_sum" or scaling == "gdpo":
        draft.put("advantage_estimator", "gdpo", "multi_objective_aggregation", "scale_rewards")
        if scaling == "gdpo":
            draft.say("advantage_estimator: gdpo adds 1e-4 to a std here, ms-swift 1e-8")
        elif "scale_rewards" in draft.given:
            draft.say("scale_rewards: does nothing with normalize_then_sum, there either; left out")
        return
    if together != "sum_then_normalize":
        draft.unsupported("multi_objective_aggregation", together)
    if estimator == "grpo":
        scaling = scaling or "group"
        if not (loss == "dr_grpo" and scaling == "none"):
            draft.put("scale_rewards", scaling, "scale_rewards", "loss_type")
        return
    draft.put("advantage_estimator", estimator)
    usual = {"rloo": "none", "reinforce_plus_plus": "batch"}.get(estimator)
    if scaling not in (None, usual):
        draft.unsupported(
            "scale_rewards", scaling, f"has no counterpart with advantage_estimator {estimator}"
        )


def _kl(draft: Draft, level: Any) -> None:
    """Converts the KL penalty. TRL's is multiplied by the ratio unless use_bias_correction_kl is false."""
    beta = draft.take_number("beta", 0.0)
    by_ratio = draft.take_flag("use_bias_correction_kl")
    in_reward = draft.take_flag(
        "kl_in_reward", draft.ours.get("advantage_estimator") in ("rloo", "reinforce_plus_plus")
    )
    reference = draft.take("ref_model")
    draft.put("beta", beta)
    if not beta:
        if draft.take_flag("sync_ref_model"):
            draft.say("sync_ref_model: does nothing without beta, there either; left out")
        return
    _moving_reference(draft)
    if reference is not None:
        draft.put("ref_model", reference)
    if draft.trainer == "trl" and by_ratio:
        draft.put("kl_gradient", "ratio", "use_bias_correction_kl")
        if level != "token":
            draft.say("kl_gradient: times the ratio of a token here, of the sequence in TRL")
    if draft.trainer == "swift" and in_reward and draft.ours.get("advantage_estimator") != "gdpo":
        draft.put("kl_in_reward", True, "kl_in_reward", "advantage_estimator")


def _moving_reference(draft: Draft) -> None:
    """Converts a reference that follows the policy. Its steps are counted by `convert_steps`."""
    moves, alpha = draft.take_flag("sync_ref_model"), draft.take_number("ref_model_mixup_alpha", 0.6)
    if not moves:
        draft.take("ref_model_sync_steps")
        return
    draft.put("sync_ref_model", True)
    draft.put("ref_model_mixup_alpha", alpha)
    draft.left.setdefault("ref_model_sync_steps", 512)


def _masks(draft: Draft, loss: str) -> None:
    """Converts the filters of tokens and completions, and the entropy bonus."""
    mask = "mask_truncated_completions" if draft.trainer == "trl" else "overlong_filter"
    if draft.take_flag(mask):
        draft.put("mask_truncated_completions", True, mask)
        if loss in OVER_COMPLETIONS:
            draft.say(
                f"{mask}: a filtered completion leaves the count of completions here; in {draft.name} it stays in it"
            )
        elif draft.trainer == "swift":
            draft.say(
                "overlong_filter: a filtered token leaves the count of tokens here; in ms-swift it stays in it"
            )
    quantile = draft.take_number("top_entropy_quantile", 1.0)
    if quantile is not None and quantile < 1:
        draft.put("top_entropy_quantile", quantile)
        draft.say(
            f"top_entropy_quantile: the threshold is the update's here, the micro-batch's in {draft.name}"
        )
    bonus = draft.take_number("entropy_coef", 0.0)
    if bonus:
        draft.put("entropy_coef", bonus)
        if loss in OVER_COMPLETIONS:
            draft.say("entropy_coef: through the loss's weights here; a mean over tokens in TRL")
    for name in ("off_policy_mask_threshold", "off_policy_sequence_mask_delta"):
        threshold = draft.take_number(name)
        if threshold is not None:
            draft.put("opsm_threshold", threshold, name)
            if draft.trainer == "swift":
                draft.say(
                    f"{name}: ms-swift also takes the dropped tokens out of the KL penalty and of a completion's mean"
                )


def _router(draft: Draft) -> None:
    """Converts the coefficient of the router auxiliary loss."""
    coefficient = draft.take_number("router_aux_loss_coef")
    if draft.trainer == "swift":
        if coefficient:
            draft.say(
                "router_aux_loss_coef: ms-swift's GRPO doesn't add the router auxiliary loss, so it's left out"
            )
    elif coefficient is not None:
        draft.put("router_aux_loss_coef", coefficient)
    else:
        draft.say(
            "router_aux_loss_coef: TRL adds a mixture of experts' own router auxiliary loss by default; here only where its "
            "config has output_router_logits true, or with router_aux_loss_coef set"
        )


Rule = Callable[[Draft, str, Any], None]
SHARED: dict[str, Rule] = {
    "grpo": _clip,
    "bnpo": _clip,
    "dapo": _clip,
    "dr_grpo": _dr_grpo,
    "cispo": _cispo,
    "sapo": _sapo,
}
LOSSES: dict[str, dict[str, Rule]] = {
    "trl": SHARED | {"luspo": _luspo, "vespo": _vespo},
    "swift": SHARED | {"fipo": _fipo, "real": _real},
}
