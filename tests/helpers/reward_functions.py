"""Reward functions for the tests, as a user would write them."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time


def digits_in_order(completions, **kwargs):
    """Share of neighbouring characters that are in order: varies between completions of any model."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]  # a chat's are messages
    return [sum(a <= b for a, b in itertools.pairwise(text)) / max(1, len(text)) for text in texts]


def digits_in_order_logged(completions, answer, trainer_state, log_metric, log_extra, **kwargs):
    """The same, with what TRL's functions may log."""
    rewards = digits_in_order(completions)
    log_metric("mine/progress", trainer_state.global_step / trainer_state.max_steps)
    log_metric("mine/order", sum(rewards) / len(rewards))
    log_extra("answer", answer)
    log_extra("order", rewards)
    return rewards


def later_tokens_more(rewards, rollouts):
    """An advantage estimator: one for each token, which grows along the completion."""
    deviations = (rewards - rewards.mean()).tolist()
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    return [[d * (t + 1) / n for t in range(n)] for d, n in zip(deviations, lengths, strict=True)]


def raises(completions):
    raise KeyError("no such thing")


def raises_later(completions):
    raises_later.calls = getattr(raises_later, "calls", 0) + 1
    if raises_later.calls > 2:
        raise RuntimeError("the third time")
    return digits_in_order(completions)


def too_few(completions):
    return [1.0]


def not_a_number(completions):
    return [float("nan")] * len(completions)


def strings(completions):
    return ["1"] * len(completions)


def never_applies(completions):
    return [None] * len(completions)


def kills(completions):
    """SIGKILL to its own process at the call that KILL_AT names: as sudden as it gets."""
    kills.calls = getattr(kills, "calls", 0) + 1
    if kills.calls == int(os.environ["KILL_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)
    return digits_in_order(completions)


def terminates(completions):
    """SIGTERM to its own process at the call that TERM_AT names, if any does; its reward prefers short words."""
    terminates.calls = getattr(terminates, "calls", 0) + 1
    if terminates.calls == int(os.environ.get("TERM_AT", "0")):
        os.kill(os.getpid(), signal.SIGTERM)
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [text.count(" ") / max(1, len(text)) for text in texts]


def slow_digits_in_order(completions):
    """The same, and slow enough for a run to be disturbed."""
    time.sleep(0.2)
    return digits_in_order(completions)


def equal_every_other_time(completions):
    """The first of each two calls learns nothing."""
    equal_every_other_time.calls = getattr(equal_every_other_time, "calls", 0) + 1
    odd = equal_every_other_time.calls % 2
    return [0.0 if odd else float(place) for place in range(len(completions))]


def noted(completions, answer, log_extra):
    """The same, with a draw that only the order of the calls decides; logs it, and how many rows a call has."""
    drawn = random.random()
    log_extra("drawn", [drawn] * len(completions))
    log_extra("rows", [len(set(answer))] * len(completions))
    return [order + 0.01 * drawn for order in digits_in_order(completions)]


_calls = 0


def fails_on_rank_1(completions):
    """Fails on the second rank, in the third step."""
    global _calls
    _calls += 1
    if _calls == 3 and os.environ.get("RANK") == "1":
        raise KeyError("gone")
    return digits_in_order(completions)
