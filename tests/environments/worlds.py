"""Tools and environments for tests: what a random model says does not matter to them."""

from __future__ import annotations

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
