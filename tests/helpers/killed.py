"""`grpokit` that kills itself, as a machine would: SIGKILL in the midst of what the first argument says.

python -m helpers.killed PHASE COUNT train ...     PHASE: rollout, backward, write, or seconds
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import torch

import grpokit.policy.export
from grpokit.commands import cli
from grpokit.policy.policy import Policy
from grpokit.rollouts import picking


def kill(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(count: int, do):
    """A function that calls `do` the `count`-th time it is called."""
    calls = 0

    def called(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            do(*args)

    return called


def arm(phase: str, count: float) -> None:
    if phase == "rollout":  # between two tokens
        tick, pick = after(int(count), kill), picking.TokenPicker.pick

        def picked(self, logits):
            tick()
            return pick(self, logits)

        picking.TokenPicker.pick = picked
    elif phase == "backward":  # when the gradient has come as far as the head, and not yet to the weights
        tick, forward = after(int(count), lambda loss: loss.register_hook(kill)), Policy.forward

        def watched(*args, **kwargs):
            scores, output = forward(*args, **kwargs)
            if output is not None:
                tick(output.loss)
            return scores, output

        Policy.forward = watched
    elif phase == "write":  # some files of a checkpoint are there
        tick, sync = after(int(count), kill), grpokit.policy.export._sync

        def synced(path):
            tick()
            sync(path)

        grpokit.policy.export._sync = synced
    else:
        timer = threading.Timer(count, kill)
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    torch.set_num_threads(1)
    arm(sys.argv[1], float(sys.argv[2]))
    sys.exit(cli.main(sys.argv[3:]))
