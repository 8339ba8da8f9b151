"""Measures a step's completions: their lengths and endings, and the turns of episodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..types import Metric, Metrics, Rollout, RolloutGroup

ENDINGS = ("done", "no_call", "turns", "length", "error")


def rollout_metrics(groups: Sequence[RolloutGroup]) -> Metrics:
    """Lengths, cut-offs and entropy of a step's completions, and the turns of episodes."""
    rollouts = undropped([rollout for group in groups for rollout in group.rollouts])
    lengths = torch.tensor([len(r.completion_ids) for r in rollouts], dtype=torch.float64)
    entropies = torch.cat([r.entropies for r in rollouts])
    cut = torch.tensor([r.finish_reason == "length" for r in rollouts])
    prompts = sum(len(r.prompt_ids(group.prompt)) for group in groups for r in group.rollouts)
    return {
        "completions/mean_length": Metric.mean(lengths),
        "completions/min_length": Metric.min(lengths),
        "completions/max_length": Metric.max(lengths),
        "completions/clipped_ratio": Metric.mean(cut),
        "completions/mean_terminated_length": Metric.mean(lengths[~cut]),
        "entropy": Metric.mean(entropies[~entropies.isnan()]),  # an environment's tokens have none
        "num_tokens": Metric.sum(lengths.sum() + prompts),
        **kept_mass(rollouts),
        **greedy_reward(groups),
        **length_correlation(groups),
    } | episode_metrics(groups)


def kept_mass(rollouts: Sequence[Rollout]) -> Metrics:
    """Measures the share of the full distribution that was sampled from, exp(full − μ); {} where no rollout knows it."""
    known = [(r.full_logps - r.logps)[r.trainable] for r in rollouts if r.full_logps is not None]
    return {"sampler/kept_mass": Metric.mean(torch.cat(known).double().exp())} if known else {}


def greedy_reward(groups: Sequence[RolloutGroup]) -> Metrics:
    """Measures the mean reward of the prompts' greedy completions; {} where none were sampled."""
    known = torch.tensor(
        [float(g.greedy_reward) for g in groups if g.greedy_reward is not None], dtype=torch.float64
    )
    return {"reward/greedy": Metric.mean(known[~known.isnan()])} if len(known) else {}


def length_correlation(groups: Sequence[RolloutGroup]) -> Metrics:
    """Measures how far the reward goes with the length within groups; {} where either never differs within one.

    It is Pearson's correlation of (reward − the group's mean) and (length − the group's mean), over the completions of the
    groups whose rewards differ.
    """
    rewards, lengths = [], []
    for group in groups:
        known = None if group.reward is None else ~group.reward.isnan()
        if group.reward is None or known is None or not known.any():
            continue
        tokens = torch.tensor([len(r.completion_ids) for r in group.rollouts], dtype=torch.float64)[known]
        own = group.reward[known]
        if own.max() == own.min():  # it says nothing, and its lengths would dilute the others'
            continue
        rewards.append(own - own.mean())
        lengths.append(tokens - tokens.mean())
    if not rewards:
        return {}
    reward, length = torch.cat(rewards), torch.cat(lengths)
    norm = reward.norm() * length.norm()
    return {"reward/length_correlation": Metric.mean((reward @ length / norm)[None])} if norm else {}


def undropped(rollouts: list[Rollout]) -> list[Rollout]:
    """Returns the rollouts without dropped episodes, which only endings/error counts; all of them if every one is dropped."""
    return [rollout for rollout in rollouts if not rollout.is_dropped] or rollouts


def episode_metrics(groups: Sequence[RolloutGroup]) -> Metrics:
    """Turns, calls and endings of a step's episodes; {} where completions have one turn."""
    everything = [rollout for group in groups for rollout in group.rollouts if rollout.episode is not None]
    if not everything:
        return {}
    endings = [rollout.episode.ending for rollout in everything if rollout.episode is not None]
    rollouts = undropped(everything)
    episodes = [rollout.episode for rollout in rollouts if rollout.episode is not None]
    turns = torch.tensor([len(e.turns) for e in episodes], dtype=torch.float64)
    calls = [sum((e.calls or {}).values()) for e in episodes]
    trainable = torch.cat([rollout.trainable for rollout in rollouts])
    found = {
        "turns/mean": Metric.mean(turns),
        "turns/max": Metric.max(turns),
        "tools/call_frequency": Metric.share(sum(calls), len(episodes)),
        "tools/failure_frequency": Metric.share(sum(e.failures for e in episodes), sum(calls)),
        "completions/trainable": Metric.mean(trainable.double()),
        "time/environment": Metric.max(torch.tensor([e.seconds for e in episodes], dtype=torch.float64)),
    }
    for name in sorted({name for e in episodes for name in e.calls or {}}):
        found[f"tools/{name}/calls"] = Metric.sum(
            torch.tensor([(e.calls or {}).get(name, 0) for e in episodes])
        )
    for ending in ENDINGS:
        ended = torch.tensor([each == ending for each in endings])
        found[f"endings/{ending}"] = Metric.mean(ended.double())
    return found
