"""Notes on configurations that run but silently do nothing, or not what was meant. Each names the flag and the remedy.

`make_loss` refuses configurations that cannot work at all.
"""

from __future__ import annotations

from .loss import Loss


def notes(loss: Loss, updates_per_rollout: int | None = None, sampler_is_trainer: bool = False) -> list[str]:
    """Returns sentences for the user.

    Args:
        loss: the loss to look at.
        updates_per_rollout: optimizer steps on each batch of completions, where known.
        sampler_is_trainer: whether the policy itself samples, so that μ = old.
    """
    found = []
    epsilon = loss.options.get("epsilon")
    wide = epsilon is not None and max(epsilon, loss.options.get("epsilon_high") or 0) >= 0.01
    if loss.level.statistic == "mean" and loss.surrogate.name == "clip" and wide:
        found.append(
            f"epsilon {epsilon:g}: the ratio of loss_type {loss.name} is a sequence's geometric mean, which moves by about "
            "1e-4, so it would never clip; 3e-4 and epsilon_high 4e-4 are the paper's"
        )
    if updates_per_rollout == 1:
        found += _on_policy_notes(loss)
    if loss.correction is not None and sampler_is_trainer:
        found.append(
            f"correction_mode {loss.correction.mode}: the sampler is the trainer itself, so old/sampler is 1 and "
            "nothing is corrected; it acts with an engine of its own, such as vLLM"
        )
    return found


def _on_policy_notes(loss: Loss) -> list[str]:
    """Notes for one update per rollout, where the ratio is always 1."""
    fix = "num_iterations 2 or updates_per_step 2 would let it act"
    acting = [name for name in ("epsilon", "epsilon_high", "tau_pos", "m2_threshold") if name in loss.options]
    found = []
    if acting and loss.surrogate.anchor == "old":
        found.append(
            f"{acting[0]}: there is one update per rollout, so the importance ratio is 1 and {loss.surrogate.name} cannot act; "
            f"{fix}. That is plain on-policy training, and no mistake"
        )
    if "kl_cov_coef" in loss.options:
        found.append(
            f"kl_cov_coef: there is one update per rollout, so its penalty |log ratio| has no gradient; {fix}"
        )
    return found


def correction_note(loss: Loss, async_depth: int, chosen_mode: str | None) -> str | None:
    """Says how the age of the rollouts is corrected with `async_depth` 1, unless the user chose a correction.

    `chosen_mode`: the preset or the mode that the user gave, or None. Returns None where there is nothing to say.
    """
    if async_depth == 0 or chosen_mode not in (None, "none"):
        return None
    if loss.surrogate.anchor == "sampler":
        return f"no correction for rollouts that are one step old: the ratio of {loss.name} is to their sampler already"
    if loss.correction is None:
        return "correction_mode none: nothing corrects for rollouts that are one step old"
    return (
        f"correction_mode {loss.correction.mode}, correction_level {loss.correction.level}, correction_cap "
        f"{loss.correction.cap:g}: the default with --async_depth {async_depth}, for rollouts that are one step old"
    )
