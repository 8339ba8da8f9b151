"""An engine with weights of its own: a copy of the policy that another thread can sample from while the policy trains.

It is no vLLM, and pretends to be none: it shows what `SampleAhead` and `--stream_rewards` do with a sampler that they start.

trains so among ranks: torchrun --nproc-per-node 2 -m helpers.elsewhere CONFIG.yaml OUTPUT [CHECKPOINT]
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import grpokit.runs.report
import grpokit.training.setup.start
from grpokit.common.shards import full
from grpokit.config.options import TrainConfig
from grpokit.parallel import ALONE, World
from grpokit.policy.load import load_policy
from grpokit.rollouts.pending import Progress, RolloutsPending
from grpokit.rollouts.sampler import SamplingStopped
from grpokit.training.setup.samplers import make_sampler
from grpokit.types import Rollout


@dataclass
class Watch:
    """A test's eyes on the engine, and its hands."""

    # what the engine did, in order: (what, version of its weights, positions, on which thread)
    diary: list[tuple] = field(default_factory=list)
    # called before it samples; the bool: on a thread of its own
    before: list[Callable[[Elsewhere, bool], None]] = field(default_factory=list)

    def samplers(self, config, policy, tokenizer, stop, world, longest, own=None):
        """In the place of `grpokit.training.setup.samplers.sampler_factory`: a sampler whose engine is elsewhere."""
        engine = Engine(self, config, policy, tokenizer, world)
        return lambda seed, config: Elsewhere(engine, seed, config, stop)


class Elsewhere:
    """See `StartingSampler`. All of a run's share one engine, as those of a server do."""

    def __init__(self, engine: Engine, seed: int, config: Any, stop: Callable[[], bool]) -> None:
        self.engine, self.stop, self.streams = engine, stop, config.stream_rewards
        self.given_up = False
        self.inner = make_sampler(config, engine.copy, engine.tokenizer, seed, self.stopped)

    def stopped(self) -> bool:
        return self.given_up or self.stop()

    def sample(self, prompts, num_generations, *, greedy=False):
        pending = self.start(prompts, num_generations, greedy=greedy)
        pending.work()
        return pending.groups()

    def start(self, prompts, num_generations, *, greedy=False):
        self.sync()
        if self.streams:
            return self.streamed(prompts, num_generations, greedy)
        return Underway(self, prompts, num_generations, greedy)

    def streamed(self, prompts, num_generations, greedy) -> RolloutsPending:
        """Samples all rollouts, and hands over group after group; of each two prompts, the second one first."""
        watch = self.engine.watch

        def sample(progress: Progress) -> list[Rollout]:
            self.progress = progress
            background = threading.current_thread() is not threading.main_thread()
            groups = self.inner.sample(prompts, num_generations, greedy=greedy)
            for place in sorted(range(len(prompts)), key=lambda place: (place // 2, -place)):
                for hook in watch.before:
                    hook(self, background)
                if progress.given_up or self.stop():
                    raise SamplingStopped("given up")
                watch.diary.append(("sampled", prompts[place].position))
                for number, rollout in enumerate(groups[place].rollouts, place * num_generations):
                    progress.ended(number, rollout)
            return [rollout for group in groups for rollout in group.rollouts]

        return RolloutsPending(prompts, num_generations, sample, self.engine.world)

    def sync(self) -> None:
        self.engine.load()


class Underway:
    """See `Pending`."""

    def __init__(self, sampler: Elsewhere, prompts, num_generations, greedy) -> None:
        self.sampler, self.asked = sampler, (prompts, num_generations)
        self.greedy, self.found, self.error = greedy, None, None

    def work(self) -> None:
        engine = self.sampler.engine
        background = threading.current_thread() is not threading.main_thread()
        entry = (engine.copy.version, [p.position for p in self.asked[0]], "ahead" if background else "now")
        engine.watch.diary.append(("begins", *entry))
        try:
            for hook in engine.watch.before:
                hook(self.sampler, background)
            self.found = self.sampler.inner.sample(*self.asked, greedy=self.greedy)
        except SamplingStopped:
            pass
        except Exception as error:  # noqa: BLE001
            self.error = error
        engine.watch.diary.append(("ends", *entry))

    def give_up(self) -> None:
        self.sampler.given_up = True

    def groups(self):
        with self.sampler.engine.world.together():
            if self.error is not None:
                raise self.error
        if self.found is None:
            raise SamplingStopped("stopped")
        return self.found


class Engine:
    """The copy."""

    def __init__(
        self, watch: Watch, config: TrainConfig, policy, tokenizer: Any, world: World = ALONE
    ) -> None:
        self.watch, self.config, self.policy = watch, config, policy
        self.tokenizer, self.world = tokenizer, world
        self.copy = load_policy(
            config.model, dtype=config.dtype, temperature=config.temperature, device=torch.device("cpu")
        )
        self.version: int | None = None

    @torch.no_grad()
    def load(self) -> None:
        if self.version == self.policy.version:
            return
        weights = {name: full(value.detach()) for name, value in self.policy.model.state_dict().items()}
        self.copy.model.load_state_dict(weights)
        self.version = self.copy.version = self.policy.version
        self.watch.diary.append(("loads", self.version))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Raises where it does not come to be."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def main(file: str, output: str, checkpoint: str = "") -> None:
    """Train among ranks."""
    from grpokit.config.yaml import load_yaml
    from grpokit.parallel import end_process, joined_world
    from helpers.running import start, train

    torch.set_num_threads(1)
    grpokit.training.setup.start.sampler_factory = Watch().samplers
    grpokit.runs.report.write_report = lambda *_, **__: "no report"
    config = replace(
        load_yaml(TrainConfig, file), output_dir=output, resume_from_checkpoint=checkpoint, config=""
    )
    with joined_world(timeout=120) as world:
        run = start(config, world)
        assert (run.rollouts.ahead is None) == config.stream_rewards
        train(run)
        run.close()
    end_process(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
