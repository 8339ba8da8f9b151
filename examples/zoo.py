"""A tool that the model needs to answer: `grpokit train --tools examples/zoo.py:lookup`. `make demo-agent` uses it.

The zoo has 1,600 animals, such as the brave otter. The food of each animal looks random, and no prompt mentions it.
"""

from __future__ import annotations

import hashlib

KINDS = """brave calm clever cold curious dusty early fancy fast fierce fluffy gentle giant golden grumpy happy hungry jolly
lazy little loud lucky merry modest noisy old patient plain polite proud quiet rusty shy silver sleepy small spotted tall
tidy young""".split()
ANIMALS = """ape badger bear beaver bison camel cobra crane crow deer duck eagle ferret finch fox frog goat goose hare
heron horse ibex koala lemur lion lizard llama lynx mole moose mouse otter owl panda rabbit seal sloth tiger wolf
zebra""".split()
FOODS = """apples bamboo beans berries bread carrots cheese clover corn eggs ferns figs fish grapes grass hay herbs honey
insects leaves mango melon moss nuts oats plums rice roots seeds shrimp snails turnips""".split()


def lookup(animal: str) -> str:
    """Find out what an animal eats.

    Args:
        animal: Which animal.
    """
    kind, _, name = animal.partition(" ")
    if kind not in KINDS or name not in ANIMALS:
        raise ValueError(f"the zoo has no {animal}")
    return food_of(animal)


def food_of(animal: str) -> str:
    """Returns what an animal eats. Example: `food_of("brave otter")` is "oats"."""
    return FOODS[int.from_bytes(hashlib.sha256(animal.encode()).digest()[:4], "big") % len(FOODS)]
