"""The ways of laying out and sampling rows, each compared with each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...batch.collate import collate
from ...batch.cuts import cut_samples
from ...common.console import say
from ...common.text import first_line
from ...parallel import ALONE, World, reshard
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
# Tokens of the prompts and completions of the model itself in short rows, and of a completion with --check full.
SHORT, SHORT_NEW = (3, 7, 12), 4
FULL_NEW = 16
LAYOUTS: tuple[Layout, ...] = ("padded", "packed", "shared")


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


@dataclass(frozen=True)
class Trial:
    """What to try: rows of which lengths, and where. Example: `Trial((3, 7, 12), 4, "on the model itself, in short rows")`"""

    lengths: Sequence[int]  # tokens of the prompts
    new: int  # the most tokens of a completion
    where: str  # ends a reason
    samples: bool = True  # whether sampling is tried too
    every: bool = False  # whether further ways of sampling are tried where one is exact
    budget: int = 8192  # the most tokens of a forward
    world: World = ALONE  # the ranks, which try the same things: what fails on one of them fails on all


class CannotCompute(ValueError):
    """A model can't even compute a row alone."""


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
        found = try_all(policy, Trial(lengths, NEW_TOKENS[lengths], "on a small twin of it", every=True))
        found = replace(found, head=_head_problem(policy))  # the model's own was compared when it was loaded
    except CannotCompute as error:
        say(f"note: a small {type(twin).__name__} could not be tried ({error})")
        return None
    finally:
        torch.set_num_threads(threads)
    return found


# --------------------------------------------------------------------------- the model itself


def short_trial(longest: int, samples: bool, world: World) -> Trial:
    """Returns what every run tries on its model: rows of at most 16 tokens, and no longer than `longest`."""
    new = max(1, min(SHORT_NEW, longest - 1))
    lengths = sorted({max(1, min(length, longest - new)) for length in SHORT})
    return Trial(lengths, new, "on the model itself, in short rows", samples, world=world)


def full_trial(longest: int, most_new: int, samples: bool, budget: int, world: World) -> Trial:
    """Returns what `--check full` tries on a run's model.

    Args:
        longest: tokens of the run's longest row.
        most_new: the most tokens of a completion.
        samples: whether the model itself samples.
        budget: the most tokens of a forward.
        world: the ranks.

    Returns:
        The trial, in rows of up to `longest` tokens.
    """
    new = min(most_new, FULL_NEW)
    prompt = max(1, longest - new)
    lengths = sorted({prompt, max(1, prompt // 2), min(prompt, 5)})
    where = f"on the model itself, in rows of up to {prompt + new:,} tokens"
    return Trial(lengths, new, where, samples, budget=budget, world=world)


# --------------------------------------------------------------------------- every way


def try_all(policy: Policy, trial: Trial) -> Found:
    """Tries every layout, and the ways of sampling. A collective where the policy is sharded.

    Args:
        policy: the model, or its twin. Ways that are ruled out on it already are not tried.
        trial: what to try.

    Returns:
        What was found, the same on every rank.

    Raises:
        CannotCompute: even a row alone fails, or memory doesn't suffice.
    """
    found = _layout_problems(policy, trial)
    if trial.samples:
        found |= _sampling_problems(policy, trial)
    return Found(**found)


def _head_problem(policy: Policy) -> str | None:
    try:
        probe_head(policy, "")
    except ValueError as error:
        return str(error).partition(": ")[2]
    return None


def _layout_problems(policy: Policy, trial: Trial) -> dict[str, str | None]:
    samples = _samples(policy, trial)
    want: dict[int, torch.Tensor] = {}
    problem = None
    try:
        for s in samples:
            row = [*s.prompt_ids, *s.completion_ids.tolist()]
            want[s.index] = log_probs_alone(policy, row)[len(s.prompt_ids) - 1 :]
    except Exception as error:  # noqa: BLE001 - kernels raise what they like
        problem = first_line(error)
    if (problem := _anywhere(problem, trial)) is not None:
        raise CannotCompute(problem)
    found: dict[str, str | None] = {}
    for layout in LAYOUTS:
        share = "always" if layout == "shared" else "never"
        # Every rank computes the same rows.
        cut = cut_samples(samples, trial.budget, packed=layout == "packed", share=share, ranks=1)
        problem, gaps, out_of_memory = None, [], None
        try:
            for part in cut.parts[0]:
                with torch.no_grad():
                    got = policy(collate(part, layout, policy.device))[0].logps.double().cpu()
                gaps.append((got - torch.cat([want[sample.index] for sample in part])).abs())
        except torch.OutOfMemoryError as error:
            out_of_memory = first_line(error)
        except Exception as error:  # noqa: BLE001 - architectures and kernels raise what they like; the reason is said
            problem = f"its forward fails: {first_line(error)}"
        if (lacking := _anywhere(out_of_memory, trial)) is not None:
            raise CannotCompute(f"{lacking}; lower --micro_batch_tokens")
        if problem is None:
            problem = _reason(policy, float(torch.cat(gaps).mean()), trial)
        found[layout] = _anywhere(problem, trial)
    reshard(policy)  # without a backward, nothing else frees the gathered weights
    return found


def _sampling_problems(policy: Policy, trial: Trial) -> dict[str, str | None]:
    """Tries the ways of sampling in the order in which a run prefers them."""
    longest = max(trial.lengths) + trial.new
    ways = [("generate", "generate", 256), ("alone", "generate", 1)]
    # The loop's own limits, such as a window, are asked of the model itself, batch by batch.
    if policy.loop_not is None and obstacle(policy.model, longest) is None:
        ways.insert(0, ("loop", "loop", 256))
    found: dict[str, str | None] = {}
    for name, decode, batch_size in ways:
        if name == "generate" and policy.generate_not is not None:
            continue
        if name == "alone" and found.get("generate", policy.generate_not) is None:
            continue
        gap, problem = try_sampling(policy, decode, trial.lengths, trial.new, batch_size)
        found[name] = _anywhere(problem or _reason(policy, gap, trial), trial)
        if found[name] is None and not trial.every:
            break
    return found


def _anywhere(problem: str | None, trial: Trial) -> str | None:
    """Returns the problem of the first rank that has one. A collective."""
    return next((said for said in trial.world.gather_json(problem) if said is not None), None)


def _samples(policy: Policy, trial: Trial) -> list[Sample]:
    """Makes a group for each prompt: two completions, of `new` tokens and of half as many."""
    vocabulary = policy.model.config.get_text_config().vocab_size
    samples: list[Sample] = []
    for prompt in trial_prompts(trial.lengths, vocabulary):
        for count in (max(1, trial.new // 2), trial.new):
            ids = (torch.arange(count) * 5 + 3 * prompt.position + count) % vocabulary
            nothing = torch.zeros(count)
            of = len(samples), prompt.position, prompt.ids, ids, torch.ones(count, dtype=torch.bool)
            samples.append(Sample(*of, advantage=0.0, weight=0.0, length=count, sampler_logps=nothing))
    return samples


def _reason(policy: Policy, gap: float, trial: Trial) -> str | None:
    halved = policy.compute_dtype in (torch.bfloat16, torch.float16)
    if gap <= (CLOSE_IN_16_BITS if halved else CLOSE):
        return None
    return f"log-probs differ by {gap:.2g} from each row alone, {trial.where}"
