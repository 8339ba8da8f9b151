"""Tools and environments for tests: what a random model says does not matter to them."""

from __future__ import annotations

import threading
import time

from grpokit.environments.contract import Observation


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


async def multiply(a: int, b: int) -> int:
    """Multiply two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a * b


def wait_for_ever(seconds: float = 1000.0) -> str:
    """Wait.

    Args:
        seconds: How long.
    """
    time.sleep(seconds)
    return "awake"


def always_adds(text: str) -> list:
    """Finds a call in every turn whose text has an even length."""
    return [] if len(text) % 2 else [{"name": "add", "arguments": {"a": len(text), "b": 1}}]


class Echo:
    """Answers each turn by its length, and ends after some turns that depend on the seed."""

    def reset(self, seed: int, **columns):
        """Begins."""
        self.left, self.said = 1 + seed % 3, []
        return f" You have {self.left} turns."

    def step(self, message: str) -> Observation:
        """Answers."""
        self.said.append(message)
        self.left -= 1
        return Observation(
            f"{len(message)} characters", reward=0.25 * (len(message) % 4), done=self.left <= 0
        )


class Counter:
    """A tool environment: counts, and rewards the count."""

    def reset(self, **columns) -> None:
        """Begins."""
        self.count, self.closed = 0, False

    def add(self, a: int, b: int) -> str:
        """Add to the count.

        Args:
            a: A number.
            b: Another.
        """
        self.count += 1
        return f"count {self.count}"

    def get_reward(self) -> float:
        """The count."""
        return float(self.count)

    def close(self) -> None:
        """Ends."""
        self.closed = True


class Last:
    """Answers the first member of a group once all its others have ended, or after a minute."""

    ended = threading.Semaphore(0)

    def reset(self, generation: int, **columns) -> None:
        """Begins."""
        self.is_first = generation == 0

    def step(self, message: str) -> Observation:
        """Answers."""
        if not self.is_first:
            return Observation("", done=True)
        count = sum(self.ended.acquire(timeout=20) for _ in range(3))
        return Observation(f"{count} others have ended", done=True)

    def close(self) -> None:
        """Ends."""
        self.ended.release()


class Fragile:
    """Like Echo, but breaks: the second member of every other group in `reset`, the third one of all in `step`."""

    def reset(self, seed: int, generation: int, **columns):
        """Begins."""
        self.generation, self.left = generation, 2
        if generation == 1 and seed % 2:
            raise ConnectionError("no world")

    def step(self, message: str) -> Observation:
        """Answers."""
        self.left -= 1
        if self.generation == 2:
            raise ValueError("a broken world")
        return Observation("go on", reward=0.25 * (len(message) % 4), done=self.left <= 0)


class Owner:
    """Owns its data: makes the prompt, and another one for each task."""

    def reset(self, seed: int) -> str:
        """Begins."""
        self.word = "ab"[seed % 2] * (1 + seed % 5)
        return f"Say {self.word}."

    def step(self, message: str) -> Observation:
        """Answers."""
        return Observation("well", reward=float(len(message) % 3), done=True)
