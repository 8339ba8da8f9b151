"""The reward `accuracy`: does a completion's answer equal the reference as mathematics? Compared by math-verify.

Answers come from a model and can be anything: ten megabytes, a thousand nested brackets, 9^9^9^9^9. So they are compared
in separate processes (`math_worker.py`). A process whose answer takes too long is killed, the answer scores 0, and the run
goes on.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import logging
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .builtin import RewardFunction, find_answer_column, last_boxed, reference_list, reference_text, text_of

ANSWER_SECONDS = 5.0  # math-verify's own limit; a common answer takes a millisecond
START_SECONDS = 120.0  # for a worker to start: it imports sympy, perhaps on a busy machine
TAIL = 3000  # characters at the end of a completion that are read: LaTeX patterns are slow on long texts

log = logging.getLogger(__name__)


def accuracy_reward(answer_column: str, columns: Collection[str], name: str = "accuracy") -> RewardFunction:
    r"""Makes the reward: 1.0 where the answer equals the reference, else 0.0; None where the reference cannot be compared.

    That is where the reference is null, or cannot be read as mathematics. Any reference of a list is right. The answer is the
    completion's last `\boxed{}`; else LaTeX after "answer:"; else the last LaTeX or number. Only the last 3,000 characters of
    a completion are read. An answer that takes longer than 5 seconds or more than 2 GiB scores 0, and is counted and logged.

    Raises:
        ValueError: `find_answer_column` finds no column, or math-verify is not installed.
    """
    column = find_answer_column(answer_column, columns, name)
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError(
            f"--reward_funcs {name}: answers are compared by the package math-verify, which isn't installed; "
            "pip install grpokit[math], or use exact_match"
        )

    def accuracy(completions: Sequence[Any], **columns: Sequence[Any]) -> list[float | None]:
        references = [reference_list(reference) for reference in columns[column]]
        given = [
            (reference_text(reference), text_of(completion))
            for several, completion in zip(references, completions, strict=True)
            for reference in several
        ]
        scores = iter(math_pool().compare(given))
        found = [[next(scores) for _ in several] for several in references]
        return [max((s for s in several if s is not None), default=None) for several in found]

    return accuracy


@lru_cache(maxsize=1)
def math_pool() -> MathPool:
    """Returns the process's own pool. Its workers start with the first answers and end with the process."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = MathPool(max(1, min(8, cores // ranks)))
    atexit.register(pool.close)
    return pool


def answer_part(text: str) -> str:
    r"""Returns the last `\boxed{...}` of the text's last TAIL characters, else these characters."""
    text = text[-TAIL:]
    box = last_boxed(text)
    return rf"\boxed{{{box}}}" if box.strip() else text


class MathPool:
    r"""Processes that compare answers. One that takes too long is killed and replaced.

    Attributes:
        stopped: the number of answers given up so far.

    Example:
        `MathPool(2).compare([("1/2", r"\boxed{0.5}"), ("2", "9^9^9^9")])` returns `[1.0, 0.0]`.
    """

    def __init__(self, size: int, seconds: float = ANSWER_SECONDS) -> None:
        self.size, self.seconds = size, seconds
        self.stopped = 0
        self._workers: list[_Worker] = []

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
        """Scores pairs (reference, answer), [B]: 1.0, 0.0, or None where the reference cannot be read.

        Only the `answer_part` of each text is read. Raises RuntimeError if the workers cannot be started.
        """
        pairs = [(answer_part(reference), answer_part(answer)) for reference, answer in pairs]
        scores: list[float | None] = [None] * len(pairs)
        waiting = deque(range(len(pairs)))
        before = self.stopped
        try:
            with selectors.DefaultSelector() as selector:
                busy = self._fill(selector, min(self.size, len(pairs)))
                while waiting or any(worker.task is not None for worker in busy):
                    for worker in busy:
                        if worker.ready and worker.task is None and waiting:
                            worker.ask(waiting[0], *pairs[waiting.popleft()], self.seconds)
                    self._wait(selector, busy, scores)
        except BaseException:  # a pending reply would be taken for the next question's
            self.close()
            raise
        if self.stopped > before:
            self._tell(self.stopped - before, len(pairs))
        return scores

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def _fill(self, selector: selectors.BaseSelector, count: int) -> list[_Worker]:
        for worker in self._workers:
            if not worker.alive or worker.process.poll() is not None:
                worker.kill()
        self._workers = [worker for worker in self._workers if worker.alive]
        self._workers += [_Worker() for _ in range(count - len(self._workers))]
        for worker in self._workers:
            selector.register(worker.out, selectors.EVENT_READ, worker)
        return self._workers

    def _wait(
        self, selector: selectors.BaseSelector, busy: list[_Worker], scores: list[float | None]
    ) -> None:
        """Takes replies until one is there or a worker is late. Replaces a worker that is late or gone."""
        deadlines = [worker.deadline for worker in busy if worker.deadline]
        found = selector.select(max(0.0, min(deadlines) - time.monotonic()) if deadlines else 0.0)
        for key, _ in found:
            worker = key.data
            task = worker.task
            for reply in worker.replies():
                if "reference" in reply:
                    worker.reference_read = reply["reference"]
                elif "score" in reply and task is not None:
                    scores[task] = reply["score"] if worker.reference_read else None
        now = time.monotonic()
        for place, worker in enumerate(busy):
            if not worker.alive or (worker.deadline and now > worker.deadline):
                if not worker.ready:
                    raise RuntimeError(
                        f"a process of math-verify ended at its start, or did not start within {START_SECONDS:.0f} s"
                    )
                if worker.task is not None:
                    scores[worker.task] = 0.0 if worker.reference_read else None
                    self.stopped += 1
                selector.unregister(worker.out)
                worker.kill()
                busy[place] = _Worker()
                selector.register(busy[place].out, selectors.EVENT_READ, busy[place])

    def _tell(self, stopped: int, of: int) -> None:
        """Logs the first time, and again whenever the number has doubled."""
        if (self.stopped - stopped).bit_length() < self.stopped.bit_length():
            log.warning(
                "note: accuracy gave up %d of %d answers, each after %g s or for its memory, and scored them 0 "
                "(%d in this process so far)",
                stopped,
                of,
                self.seconds,
                self.stopped,
            )


class _Worker:
    """A process of math_worker.py."""

    def __init__(self) -> None:
        # Isolated, in a session of its own: this directory's modules and the terminal's Ctrl-C do not reach it.
        command = [sys.executable, "-P", str(Path(__file__).with_name("math_worker.py")), str(os.getpid())]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.buffer = b""
        self.ready = self.reference_read = False
        self.alive = True
        self.task: int | None = None
        self.deadline = time.monotonic() + START_SECONDS  # 0: no reply is expected

    def ask(self, task: int, reference: str, answer: str, seconds: float) -> None:
        """Sends a question. It fits into the pipe, so this never waits."""
        self.task, self.reference_read = task, False
        # The worker's own alarm comes first. If that fails, it is killed from here.
        self.deadline = time.monotonic() + seconds + 1.0
        request = {"reference": reference, "answer": answer, "seconds": seconds}
        try:
            os.write(self.input, json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            self.alive = False

    def replies(self) -> list[dict[str, Any]]:
        """Returns the replies that have arrived. Raises RuntimeError if the worker cannot start."""
        read = os.read(self.out, 1 << 16)
        if not read:
            self.alive = False
            return []
        *whole, self.buffer = (self.buffer + read).split(b"\n")
        found = [json.loads(line) for line in whole]
        for reply in found:
            if "error" in reply:
                raise RuntimeError(
                    f"math-verify cannot be imported: {reply['error']}; pip install grpokit[math]"
                )
            self.ready = True
            if "reference" not in reply:
                self.task, self.deadline = None, 0.0
        return found

    def kill(self) -> None:
        """Ends it, whatever it is doing."""
        self.alive = False
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
