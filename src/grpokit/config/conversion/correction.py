"""Converts the correction for a sampler that isn't the trainer. TRL's is on by default, with vLLM alone; ms-swift's is off."""

from __future__ import annotations

from .draft import Draft
from .losses import NO_BOUND

# Sampling that changes the distribution: their values that don't.
PLAIN_SAMPLING = {
    "top_p": (1.0, None),
    "top_k": (0, -1, None),
    "min_p": (0.0, None),
    "repetition_penalty": (1.0, None),
}


def convert_correction(draft: Draft, uses_vllm: bool) -> None:
    """Converts the correction for a sampler that isn't the trainer: TRL's is on by default, with vLLM alone."""
    (_trl_correction if draft.trainer == "trl" else _swift_correction)(draft, uses_vllm)


def _trl_correction(draft: Draft, uses_vllm: bool) -> None:
    word = "vllm_importance_sampling_"
    corrects, mode = draft.take_flag(f"{word}correction"), str(draft.take(f"{word}mode"))
    high, older = draft.take_number(f"{word}clip_max"), draft.take_number(f"{word}cap")
    low = draft.take_number(f"{word}clip_min")
    if not (uses_vllm and corrects):
        return
    level, _, kind = mode.partition("_")
    if level not in ("token", "sequence") or kind not in ("mask", "truncate"):
        draft.unsupported(f"{word}mode", mode)
        return
    high = older if older is not None else high
    source = tuple(f"{word}{name}" for name in ("mode", "clip_max", "clip_min", "cap"))
    _put_correction(draft, kind, {"token": "token", "sequence": "sequence_product"}[level], low, high, source)


def _swift_correction(draft: Draft, uses_vllm: bool) -> None:
    word = "rollout_importance_sampling_"
    mode, high = draft.take(f"{word}mode"), draft.take_number(f"{word}threshold")
    if mode is None:
        return
    if not uses_vllm:
        draft.say(f"{word}mode: {mode} corrects for vLLM, and use_vllm is not set; left out")
        return
    level, _, kind = str(mode).partition("_")
    if level not in ("token", "sequence") or kind not in ("mask", "truncate"):
        draft.unsupported(f"{word}mode", mode)
        return
    ours = {"token": "token", "sequence": "sequence_geometric"}[level]
    if mode == "sequence_mask":  # a kept completion's tokens have their own weights
        _put_correction(draft, "truncate", "token", None, None, (f"{word}mode",))
        if "correction_mode" in draft.ours:
            draft.put("correction_keep", ours, f"{word}mode")
            draft.put("correction_keep_high", high, f"{word}threshold")
    else:
        _put_correction(draft, kind, ours, None, high, (f"{word}mode",))
    if draft.ours.get("beta"):
        draft.say(
            f"{word}mode: ms-swift multiplies the KL penalty by the weights too; here the policy term alone"
        )


def _put_correction(
    draft: Draft, kind: str, level: str, low: float | None, high: float | None, sources: tuple[str, ...]
) -> None:
    shaped = [name for name in PLAIN_SAMPLING if name in draft.ours]
    if shaped:
        draft.say(
            f"{sources[0]}: {shaped[0]} makes completions come from another distribution than the one that is trained, so "
            "nothing is corrected; left out"
        )
        return
    high = NO_BOUND if high is None else high
    draft.put("correction_mode", kind, *sources)
    draft.put("correction_level", level, *sources)
    if kind == "truncate":
        draft.put("correction_cap", high, *sources)
        if low:
            draft.put("correction_low", low, *sources)
    else:
        draft.put("correction_low", low or 0.0, *sources)
        draft.put("correction_high", high, *sources)
