"""Makes the optimizer over the parameters that are trained, and sets its learning rate."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..common.imports import load_object
from ..common.text import one_line
from ..config.options import TrainConfig
from ..types import Metric
from .eight_bit import SMALLEST, AdamW8bit
from .muon import Muon, hidden_matrices
from .policy import Policy
from .schedules import learning_rate

MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]], float], torch.optim.Optimizer]
"""An optimizer of one's own, as `optimizer=` and `--optim file.py:fn` take it.

It is called once, with the named parameters that are trained and the learning rate, and returns a torch optimizer over
them. Parameter groups may begin at rates of their own: the schedule scales each.

Example:
    >>> def sgd(named_parameters, learning_rate):
    ...     return torch.optim.SGD([p for _, p in named_parameters], lr=learning_rate, momentum=0.9)
"""


def make_optimizer(
    policy: Policy, config: TrainConfig, own: MakeOptimizer | torch.optim.Optimizer | None = None
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that are trained: --optim's, or one of the user's own.

    Raises ValueError where `own` makes something else than an optimizer over exactly these parameters.
    """
    named = [(name, p) for name, p in policy.model.named_parameters() if p.requires_grad]
    if own is None and ":" in config.optim:
        own = load_object(config.optim, "--optim")
    if own is None:
        optimizer = _own_optimizer(policy.model, named, config)
    elif isinstance(own, torch.optim.Optimizer):
        optimizer = own
    else:
        optimizer = _call(own, named, config)
    _check_parameters(optimizer, [p for _, p in named], config)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def _own_optimizer(
    model: Any, named: Sequence[tuple[str, nn.Parameter]], config: TrainConfig
) -> torch.optim.Optimizer:
    """Makes adamw, muon or adamw_8bit, with groups of parameters that decay and of those that don't."""
    decays = decayed_names(model)

    def groups(names: Iterable[str]) -> list[dict[str, Any]]:
        wanted = set(names)
        found = [
            {"params": [p for n, p in named if n in wanted and (n in decays) == decay], "weight_decay": rate}
            for decay, rate in ((True, config.weight_decay), (False, 0.0))
        ]
        return [group for group in found if group["params"]]

    names = {name for name, _ in named}
    rate, betas, eps = config.learning_rate, (config.adam_beta1, config.adam_beta2), config.adam_epsilon
    if config.optim == "adamw_8bit":
        return AdamW8bit(groups(names), rate, betas, eps)
    if config.optim == "muon":
        matrices = hidden_matrices(model) & names
        momentum = config.muon_momentum
        return Muon(groups(matrices), groups(names - matrices), rate, momentum, betas=betas, eps=eps)
    return torch.optim.AdamW(groups(names), lr=rate, betas=betas, eps=eps)


# The optimizers that are made here: their groups' numbers are options, which follow the configuration.
OWN = (torch.optim.AdamW, Muon, AdamW8bit)

# The names that transformers' Trainer leaves out.
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)")


def decayed_names(model: Any) -> set[str]:
    """Returns the names of the parameters that --weight_decay acts on, as in transformers' Trainer.

    Norms, biases and other vectors are left out. So are the parts of a multimodal model that text never reaches: they have no
    gradient, and decay alone would move them.

    Example:
        >>> decayed_names(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)))
        {'0.weight'}
    """
    used: set[int] | None = None
    if hasattr(model, "get_decoder"):
        parts = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
        used = {id(p) for part in parts if part is not None for p in part.parameters()}
    norms = {
        f"{name}.{own}"
        for name, m in model.named_modules()
        if isinstance(m, nn.LayerNorm)
        for own in m._parameters
    }
    return {
        name
        for name, p in model.named_parameters()
        if p.ndim > 1
        and name not in norms
        and not UNDECAYED.search(name.lower())
        and (used is None or id(p) in used)
    }


def _call(
    make: MakeOptimizer, named: list[tuple[str, nn.Parameter]], config: TrainConfig
) -> torch.optim.Optimizer:
    try:
        optimizer = make(named, config.learning_rate)
    except Exception as error:
        raise ValueError(
            f"--optim {config.optim}: raised {type(error).__name__}: {one_line(error)}; expected a function "
            "f(named_parameters, learning_rate) that returns a torch optimizer"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"--optim {config.optim}: returned a {type(optimizer).__name__}; expected a torch.optim.Optimizer"
        )
    return optimizer


def _check_parameters(
    optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], config: TrainConfig
) -> None:
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    wanted = {id(p) for p in trained}
    if given != wanted:
        raise ValueError(
            f"--optim {config.optim}: it has {len(given & wanted)} of the {len(wanted)} parameters that are trained, and "
            f"{len(given - wanted)} others; give it all of named_parameters, and no others (on several ranks the "
            "parameters are shards: pass a function that makes the optimizer, not an optimizer)"
        )


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Says what muon or adamw_8bit does with which parameters; "" for any other optimizer.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> describe_optimizer(Muon([{"params": [layer.weight]}], [{"params": [layer.bias]}], lr=1e-3, momentum=0.95))
        'muon: 1 matrix (8 parameters) by Muon; 1 other tensor (2 parameters) by AdamW: embeddings, the head, norms, biases'
    """
    tensors = [p for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, Muon):
        own = {id(p) for group in optimizer.matrices for p in group["params"]}
        first, rest = ([p for p in tensors if (id(p) in own) == is_own] for is_own in (True, False))
        others = (
            f"{_counted(rest, 'other tensor', 'other tensors')} by AdamW: embeddings, the head, norms, biases"
        )
        return f"muon: {_counted(first, 'matrix', 'matrices')} by Muon" + (f"; {others}" if rest else "")
    if isinstance(optimizer, AdamW8bit):
        first, rest = ([p for p in tensors if (p.numel() >= SMALLEST) == large] for large in (True, False))
        others = f"{_counted(rest, 'small one', 'small ones')} in 32 bits, by the same AdamW"
        return f"adamw_8bit: moments of {_counted(first, 'tensor', 'tensors')} in 8 bits" + (
            f"; of {others}" if rest else ""
        )
    return ""


def _counted(tensors: Sequence[torch.Tensor], one: str, many: str) -> str:
    return f"{len(tensors):,} {one if len(tensors) == 1 else many} ({sum(t.numel() for t in tensors):,} parameters)"


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> dict[str, Metric]:
    """Sets the learning rate of step `step`, counted from 0, and returns it as a metric."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, group["initial_lr"])
    return {"learning_rate": Metric.share(optimizer.param_groups[0]["lr"], 1)}
