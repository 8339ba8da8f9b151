"""The ways of laying out and sampling rows, each compared with each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...batch.collate import collate
from ...common.console import say
from ...common.text import first_line
from ...policy.architecture import obstacle
from ...policy.policy import Policy
from ...policy.probes import probe_head
from ...policy.twin import make_twin
from ...rollouts.trial import log_probs_alone, trial_prompts, try_sampling
from ...types import Layout, Sample

# Mean gaps of log-probs that rounding explains.
CLOSE, CLOSE_IN_16_BITS = 1e-3, 5e-2
# Tokens of the twin's prompts: those that stay within its window with their completions, and those that outgrow it.
WITHIN, BEYOND = (1, 2, 4), (3, 11, 20, 26)
NEW_TOKENS = {WITHIN: 3, BEYOND: 6}
# Tokens of the prompts and completions that the model itself samples, and of a completion with --check full.
SHORT, SHORT_NEW = (3, 7, 12), 4
FULL_NEW = 16


@dataclass(frozen=True)
class Found:
    """For each layout and way of sampling, the reason why it is not exact. None: it is exact, or was not tried.

    Example: `Found(padded=None, packed="...", shared=None, loop=None, generate="...", alone=None, head=None)`
    """

    padded: str | None = None
    packed: str | None = None
    shared: str | None = None
    loop: str | None = None  # sampled by the decode loop
    generate: str | None = None  # sampled by generate, rows padded to one length
    alone: str | None = None  # sampled by generate, row by row
    head: str | None = None


# --------------------------------------------------------------------------- a small twin

_found: dict[tuple[type, str, tuple[int, ...]], Found | None] = {}  # what was found in this process


def try_twin(model: Any, lengths: tuple[int, ...]) -> Found | None:
    """Tries a twin of a model on prompts of these lengths, once in a process. Returns None where it can't be computed."""
    described = f"{model.config.to_json_string()} {model.config._attn_implementation} {model.device}"
    key = type(model), described, lengths
    if key not in _found:
        _found[key] = _build_and_try(model, lengths)
    return _found[key]


def _build_and_try(model: Any, lengths: tuple[int, ...]) -> Found | None:
    try:
        twin = make_twin(model)
    except ValueError as error:
        say(f"note: {error}; only the model itself was tried")
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # fastest for something so small
    try:
        policy = Policy(twin, 1.0, torch.float32, torch.float32)
        return try_all(policy, lengths, NEW_TOKENS[lengths], "on a small twin of it")
    except CannotCompute as error:
        say(f"note: a small {type(twin).__name__} could not be tried ({error})")
        return None
    finally:
        torch.set_num_threads(threads)


# --------------------------------------------------------------------------- the model itself


def try_model(policy: Policy, longest: int, most_new: int) -> Found:
    """Tries a model itself, in rows as long as a run's longest.

    Args:
        policy: the model.
        longest: tokens of the longest row.
        most_new: the most tokens of a completion.

    Returns:
        What was found.

    Raises:
        ValueError: even a row alone fails.
    """
    new = min(most_new, FULL_NEW)
    prompt = max(1, longest - new)
    lengths = sorted({prompt, max(1, prompt // 2), min(prompt, 5)})
    rows = f"rows of up to {prompt + new:,} tokens"
    try:
        return try_all(policy, lengths, new, f"on the model itself, in {rows}")
    except CannotCompute as error:
        raise ValueError(f"--check full: {rows} cannot be computed: {error}") from error


def try_short_sampling(policy: Policy, longest: int) -> Found:
    """Samples from a model itself, in short rows: first as the run would, and in the next way where that isn't exact.

    Args:
        policy: the model; the ways that its twin has ruled out are noted on it.
        longest: tokens of the run's longest row.

    Returns:
        The ways of sampling; those that aren't needed are not tried.
    """
    new = max(1, min(SHORT_NEW, longest - 1))
    lengths = sorted({max(1, min(length, longest - new)) for length in SHORT})
    ways: list[tuple[str, str, int]] = [("generate", "generate", 256), ("alone", "generate", 1)]
    if policy.loop_not is None and obstacle(policy.model, longest) is None:
        ways.insert(0, ("loop", "loop", 256))
    if policy.generate_not is not None:
        ways = [way for way in ways if way[0] != "generate"]
    found: dict[str, str | None] = {}
    for name, decode, batch_size in ways:
        gap, problem = try_sampling(policy, decode, lengths, new, batch_size)
        found[name] = problem or _reason(policy, gap, "on the model itself, in short rows")
        if found[name] is None:
            break
    return Found(**found)


# --------------------------------------------------------------------------- every way


class CannotCompute(ValueError):
    """A model can't even compute a row alone."""


def try_all(policy: Policy, lengths: Sequence[int], new: int, where: str) -> Found:
    """Tries every layout and way of sampling.

    Args:
        policy: the model, or its twin.
        lengths: tokens of the prompts.
        new: the most tokens of a completion.
        where: ends the reason, such as "on a small twin of it".

    Returns:
        What was found.

    Raises:
        CannotCompute: even a row alone fails.
    """
    samples = _samples(policy, lengths, new)
    try:
        alone = [
            log_probs_alone(policy, [*s.prompt_ids, *s.completion_ids.tolist()])[len(s.prompt_ids) - 1 :]
            for s in samples
        ]
    except Exception as error:  # kernels raise what they like
        raise CannotCompute(first_line(error)) from error
    want = torch.cat(alone)

    def layout(kind: Layout) -> str | None:
        try:
            with torch.no_grad():
                got = policy(collate(samples, kind, policy.device))[0].logps.double().cpu()
        except Exception as error:  # noqa: BLE001 - architectures and kernels raise what they like; the reason is said
            return f"its forward fails: {first_line(error)}"
        return _reason(policy, float((got - want).abs().mean()), where)

    def sampling(decode: str, batch_size: int = 256) -> str | None:
        gap, problem = try_sampling(policy, decode, lengths, new, batch_size)
        return problem or _reason(policy, gap, where)

    try:
        probe_head(policy, "")
        head = None
    except ValueError as error:
        head = str(error).partition(": ")[2]
    generate = sampling("generate")
    return Found(
        padded=layout("padded"),
        packed=layout("packed"),
        shared=layout("shared"),
        # The loop's own limits, such as a window, are asked of the model itself, batch by batch.
        loop=None if obstacle(policy.model, max(lengths) + new) else sampling("loop"),
        generate=generate,
        alone=None if generate is None else sampling("generate", 1),
        head=head,
    )


def _samples(policy: Policy, lengths: Sequence[int], new: int) -> list[Sample]:
    """Makes a group for each prompt: two completions, of `new` tokens and of half as many."""
    vocabulary = policy.model.config.get_text_config().vocab_size
    samples: list[Sample] = []
    for prompt in trial_prompts(lengths, vocabulary):
        for count in (max(1, new // 2), new):
            ids = (torch.arange(count) * 5 + 3 * prompt.position + count) % vocabulary
            nothing = torch.zeros(count)
            of = len(samples), prompt.position, prompt.ids, ids, torch.ones(count, dtype=torch.bool)
            samples.append(Sample(*of, advantage=0.0, weight=0.0, length=count, sampler_logps=nothing))
    return samples


def _reason(policy: Policy, gap: float, where: str) -> str | None:
    halved = policy.compute_dtype in (torch.bfloat16, torch.float16)
    if gap <= (CLOSE_IN_16_BITS if halved else CLOSE):
        return None
    return f"log-probs differ by {gap:.2g} from each row alone, {where}"
