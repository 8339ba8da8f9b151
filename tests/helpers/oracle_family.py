"""The whole family once more, written from the formulas: loops over scalars, whole sequences, nothing cut.

It shares no code and no structure with grpokit.losses. Means over sequences, groups and the update are taken literally,
and their gradients by autograd through them: so it also checks that the library's per-token gradients add up to those.
A step is a list of sequences; see `Sequence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from grpokit.common.noise import keyed_hash


@dataclass
class Sequence:
    """logp: leaf scalars, one per trainable token; the rest are floats of the same length (advantages may vary)."""

    id: int
    group: int
    positions: list
    logp: list
    old: list
    sampler: list
    ref: list
    entropy: list  # leaf scalars
    advantage: list


def num(x):
    return float(x.detach()) if isinstance(x, torch.Tensor) else float(x)


def held(x, low, high):
    return min(max(x, low), high) if not isinstance(x, torch.Tensor) else torch.clamp(x, low, high)


def d_of(s, t, anchor="old"):
    return held(s.logp[t] - (s.old[t] if anchor == "old" else s.sampler[t]), -20, 20)


def ppo(rho, a, eps, high, delta=None):
    first = rho if delta is None else held(rho, -math.inf, delta)
    return -torch.minimum(first * a, held(rho, 1 - eps, 1 + high) * a)


def mean_d(s):
    return sum(d_of(s, t) for t in range(len(s.logp))) / len(s.logp)


def gspo(steps, s, t, eps=3e-4, high=4e-4):
    return ppo(torch.exp(mean_d(s)), s.advantage[t], eps, high)


def gspo_token(steps, s, t):
    d = d_of(s, t) - d_of(s, t).detach() + mean_d(s).detach()
    return ppo(torch.exp(d), s.advantage[t], 3e-4, 4e-4)


def gmpo(steps, s, t):
    sign = (s.advantage[0] > 0) - (s.advantage[0] < 0)
    total = 0
    for k in range(len(s.logp)):
        d = d_of(s, k)
        total = total + sign * torch.minimum(sign * d, sign * held(d, -0.4, 0.4))
    return -s.advantage[t] * torch.exp(total / len(s.logp))


def luspo(steps, s, t):
    return gspo(steps, s, t, 2e-3, 2.5e-3)


def vespo(steps, s, t):
    log_w = num(sum(d_of(s, k) for k in range(len(s.logp))))
    log_w = held(held(log_w, -20, 20), math.log(1e-8), 20)
    k, lam = (2, 3) if s.advantage[t] >= 0 else (3, 2)
    return -math.exp(k * log_w + lam * (1 - math.exp(log_w))) * s.advantage[t] * s.logp[t]


def dppo_tv(steps, s, t):
    pi, mu, a = math.exp(num(s.logp[t])), math.exp(s.sampler[t]), s.advantage[t]
    if (a > 0 and pi - mu > 0.2) or (a < 0 and pi - mu < -0.2):
        return 0.0 * s.logp[t]
    return -min(math.exp(num(d_of(s, t, "sampler"))), 20.0) * a * s.logp[t]


def dppo_kl(steps, s, t):
    pi, mu, a = math.exp(num(s.logp[t])), math.exp(s.sampler[t]), s.advantage[t]
    kl = mu * math.log(mu / pi) + (1 - mu) * math.log((1 - mu) / (1 - pi))
    if ((a > 0 and pi > mu) or (a < 0 and pi < mu)) and kl > 0.05:
        return 0.0 * s.logp[t]
    return -min(math.exp(num(d_of(s, t, "sampler"))), 20.0) * a * s.logp[t]


def spo(steps, s, t):
    rho, a = torch.exp(d_of(s, t)), s.advantage[t]
    return -a * rho + abs(a) * (rho - 1) ** 2 / 0.4


def reinforce(steps, s, t):
    return -s.advantage[t] * s.logp[t]


def importance_sampling(steps, s, t):
    return -s.advantage[t] * torch.exp(d_of(s, t))


def fipo(steps, s, t):
    gamma, future = 2 ** (-1 / 32), 0.0
    for k in range(t, len(s.logp)):
        future += gamma ** (s.positions[k] - s.positions[t]) * num(d_of(s, k))
    f = held(math.exp(held(future, -20, 20)), 1.0, 1.2)
    rho = torch.exp(d_of(s, t))
    if s.advantage[t] < 0 and num(rho) > 4:
        f = min(f, 1.0)
    return f * ppo(rho, s.advantage[t], 0.2, 0.2)


def real_loss(sequences, tau=0.5):
    """The loss itself, all groups."""
    values = []
    for g in sorted({s.group for s in sequences}):
        members = [s for s in sequences if s.group == g]
        positive = [mean_d(s) for s in members if s.advantage[0] > 0]
        negative = [mean_d(s) for s in members if s.advantage[0] < 0]
        if positive and negative:
            up = torch.log(1 + sum(torch.exp(x / tau) for x in negative))
            values.append(up + torch.log(1 + sum(torch.exp(-x / tau) for x in positive)))
    groups = len({s.group for s in sequences})
    return sum(values) / groups if values else torch.zeros((), dtype=torch.float64)


def all_tokens(sequences):
    return [(s, t) for s in sorted(sequences, key=lambda s: s.id) for t in range(len(s.logp))]


def covariances(sequences):
    tokens = all_tokens(sequences)
    mean_a = sum(s.advantage[t] for s, t in tokens) / len(tokens)
    mean_l = sum(num(s.logp[t]) for s, t in tokens) / len(tokens)
    return {(s.id, t): (s.advantage[t] - mean_a) * (num(s.logp[t]) - mean_l) for s, t in tokens}


def clip_cov(sequences, s, t, low=1.0, high=5.0, ratio=2e-4):
    cov, eligible = covariances(sequences), []
    for u, k in all_tokens(sequences):
        rho, a = math.exp(num(d_of(u, k))), u.advantage[k]
        clipped = (rho < 0.8 and a < 0) or (rho > 1.2 and a > 0)
        if low < cov[u.id, k] < high and not clipped:
            hash_ = int(keyed_hash(0, 0, u.id, u.positions[k])) % 2**64
            eligible.append((hash_, u.id, k))
    chosen = sorted(eligible)[: max(1, int(ratio * len(cov)))]
    value = ppo(torch.exp(d_of(s, t)), s.advantage[t], 0.2, 0.2)
    return value.detach() if (s.id, t) in [(i, k) for _, i, k in chosen] else value


def kl_cov(sequences, s, t):
    cov = covariances(sequences)
    largest = sorted(cov, key=lambda key: (-cov[key], key))[: max(1, int(2e-3 * len(cov)))]
    value = -s.advantage[t] * torch.exp(d_of(s, t))
    return value + torch.abs(d_of(s, t)) if (s.id, t) in largest else value


def m2po(sequences, s, t):
    squares = {}
    for u, k in all_tokens(sequences):
        d, a = num(d_of(u, k)), u.advantage[k]
        if (a > 0 and d > 0) or (a < 0 and d < 0):
            squares[u.id, k] = d**2
    left = sorted(squares, key=lambda key: (-squares[key], key))
    dropped = set()
    while left and sum(squares[key] for key in left) / len(left) > 0.04:
        dropped.add(left.pop(0))
    return -s.advantage[t] * torch.exp(d_of(s, t)) * ((s.id, t) not in dropped)


ELL = {
    f.__name__: f
    for f in (
        *(gspo, gspo_token, gmpo, luspo, vespo, dppo_tv, dppo_kl, spo, reinforce),
        *(importance_sampling, fipo, clip_cov, kl_cov, m2po),
    )
}

REDUCTION = dict.fromkeys(("gspo", "gspo_token", "gmpo", "spo", "real"), "sequence_mean") | {
    "luspo": "sequence_sum"
}


def divisor(reduction, sequences, s):
    if reduction == "sequence_mean":
        return len(sequences) * len(s.logp)
    if reduction == "sequence_sum":
        return len(sequences)
    return sum(len(u.logp) for u in sequences)  # token_mean


def token_weights(s):
    """log c of each token of a sequence."""
    return [held(o - m, -20, 20) for o, m in zip(s.old, s.sampler, strict=True)]


def reduced(values, level, t):
    return {
        "token": lambda: values[t],
        "sequence_product": lambda: sum(values),
        "sequence_geometric": lambda: sum(values) / len(values),
        "sequence_max": lambda: max(values),
    }[level]()


def correction(
    sequences, s, t, mode, level, cap=2.0, low=None, high=None, estimator="k1", keep=None, normalize=False
):
    """`keep`: (level, low, high)."""
    own = _correction(s, t, mode, level, cap, low, high, estimator)
    if normalize and level == "token":
        every = [_correction(u, k, mode, level, cap, low, high, estimator) for u, k in all_tokens(sequences)]
        own = own / (sum(every) / len(every))
    elif normalize:
        every = [_correction(u, 0, mode, level, cap, low, high, estimator) for u in sequences]
        own = own / (sum(every) / len(every))
    if keep is not None:
        c = math.exp(held(reduced(token_weights(s), keep[0], t), -20, 20))
        own = own if keep[1] <= c <= keep[2] else 0.0
    return own


def _correction(s, t, mode, level, cap, low, high, estimator):
    d = token_weights(s)
    if mode == "reject":
        values = {
            "k1": [-x for x in d],
            "k2": [x * x / 2 for x in d],
            "k3": [math.exp(x) - 1 - x for x in d],
        }[estimator]
        value = reduced(values, level, t)
        if estimator == "k1":
            return float(math.log(1 / high if low is None else low) <= value <= math.log(high))
        return float(value <= high)
    c = math.exp(held(reduced(d, level, t), -20, 20))
    if mode == "truncate":
        return min(max(c, low or 0.0), cap)
    return c if (0.5 if low is None else low) <= c <= (5.0 if high is None else high) else 0.0


def kl(s, t, estimator="k3", gradient="own"):
    x = s.logp[t] - s.ref[t]
    d = held(x, -20, 20)
    values = {"k1": x, "k2": x * x / 2, "k3": torch.exp(-d) + d - 1}
    if gradient == "k2":
        return values[estimator].detach() + values["k2"] - values["k2"].detach()
    return values[estimator] * torch.exp(d_of(s, t)) if gradient == "ratio" else values[estimator]


def total(
    name,
    sequences,
    beta=0.0,
    kl_estimator="k3",
    kl_gradient="own",
    entropy_coef=0.0,
    quantile=None,
    correct=None,
    opsm=None,
):
    """The loss of a whole step, connected to the leaves."""
    sequences = [s for s in sequences if s.logp]
    reduction = REDUCTION.get(name, "token_mean")
    result = real_loss(sequences) if name == "real" else 0.0
    if quantile is not None:
        values = sorted(num(s.entropy[t]) for s, t in all_tokens(sequences))
        place = (1 - quantile) * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        threshold = values[low] + (place - low) * (values[high] - values[low])
    for s, t in all_tokens(sequences):
        w = 1 / divisor(reduction, sequences, s)
        term = 0.0 if name == "real" else ELL[name](sequences, s, t)
        if correct is not None:
            how = correct if isinstance(correct, dict) else dict(zip(("mode", "level"), correct, strict=True))
            term = correction(sequences, s, t, **how) * term
        if opsm is not None and s.advantage[t] < 0:
            drift = sum(held(m - num(p), -20, 20) for m, p in zip(s.sampler, s.logp, strict=True)) / len(
                s.logp
            )
            term = 0.0 * term if drift > opsm else term
        if quantile is not None and num(s.entropy[t]) < threshold:
            term = 0.0 * term
        if beta:
            term = term + beta * kl(s, t, kl_estimator, kl_gradient)
        if entropy_coef:
            term = term - entropy_coef * s.entropy[t]
        result = result + w * term
    return result
