"""Converts how rows are named and mixed, when a run ends early, and which model of its evaluations is kept."""

from __future__ import annotations

import json
from typing import Any

from ...config.conversion.draft import Draft, listed
from ...data.names import read_names

# ms-swift's names of columns: those that state the prompt, and those that hold the reference answer.
PROMPTS = ("query", "messages", "prompt", "question")
ANSWERS = ("solution", "response", "answer", "ground_truth")
BEST = "best/ has the model of the best eval/reward, and final/ the last one"


def convert_columns(draft: Draft) -> None:
    """Converts ms-swift's `columns`, their name → ms-swift's, which may be JSON."""
    given = draft.take("columns")
    if given is None:
        return
    try:
        names = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        names = None
    if not isinstance(names, dict):
        draft.unsupported("columns", given, "is no mapping of columns")
        return
    for name, theirs in names.items():
        if theirs in PROMPTS and "prompt_column" not in draft.ours:
            draft.put("prompt_column", str(name), "columns")
        elif theirs in ANSWERS and "answer_column" not in draft.ours:
            draft.put("answer_column", str(name), "columns")
            draft.say(
                f"answer_column: built-in rewards read {name}; a function of your own gets it as {name}, not as {theirs}"
            )
        elif name != theirs:
            draft.unsupported(
                "columns", {name: theirs}, "has no counterpart: rewards get a column by its own name"
            )


def convert_shares(draft: Draft) -> None:
    """Converts ms-swift's `interleave_prob` to the weights of the datasets."""
    shares: Any = listed(draft.take("interleave_prob"))
    names = listed(draft.ours.get("dataset"))
    if not shares:
        return
    try:
        weighted = [f"{name}:{float(share):g}" for name, share in zip(names, shares, strict=True)]
        read_names(weighted)
        if len(names) < 2:
            raise ValueError("one dataset has no shares")
    except (TypeError, ValueError):
        draft.unsupported("interleave_prob", shares, f"does not fit {len(names)} datasets")
        return
    draft.put("dataset", weighted, "dataset", "interleave_prob")
    draft.said[:] = [
        note for note in draft.said if not note.startswith(f"dataset: {len(names)} datasets are drawn")
    ]
    draft.say("interleave_prob: the weights of --dataset; a dataset that is through begins anew here")


def convert_best(draft: Draft) -> None:
    """Converts what they do with the best of their evaluations. Ours are by eval/reward, and more is better."""
    metric = draft.take_word("metric_for_best_model").removeprefix("eval_")
    if draft.take_flag("load_best_model_at_end"):
        draft.say(f"load_best_model_at_end: {BEST}")
    if metric not in ("", "reward"):
        draft.unsupported("metric_for_best_model", metric, f"has no counterpart: {BEST}")
    patience = draft.take_number("early_stop_interval")
    if patience is None:
        return
    if patience < 1 or patience != int(patience):
        draft.unsupported("early_stop_interval", patience, "is no number of evaluations")
    elif not draft.ours.get("eval_steps"):
        draft.unsupported(
            "early_stop_interval",
            int(patience),
            "needs evaluations: set --eval_dataset, --eval_steps and --early_stop",
        )
    else:
        draft.put("early_stop", f"eval/reward:{int(patience)}", "early_stop_interval")
