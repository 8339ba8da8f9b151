"""A game that answers in text: guess a number. `grpokit train --environment examples/number_game.py:GuessNumber`."""

from __future__ import annotations

import random
import re

from grpokit.environments import Observation


class GuessNumber:
    """Thinks of a number from 1 to 15. Every group gets one number, because `seed` is the same for its members."""

    def reset(self, seed: int, **columns: object) -> str:
        """Thinks of a number.

        Args:
            seed: decides the number.
            **columns: the row's columns, which the game does not need.
        """
        self.number = random.Random(seed).randint(1, 15)
        return " I think of a number from 1 to 15. Guess it."

    def step(self, message: str) -> Observation:
        """Answers a guess.

        Args:
            message: what the model says; its last number is the guess.
        """
        found = re.findall(r"\d+", message)
        if not found:
            return Observation("Please say a number.")
        guess = int(found[-1][:4])
        if guess == self.number:
            return Observation("Right!", reward=1.0, done=True)
        return Observation("Higher." if guess < self.number else "Lower.")
