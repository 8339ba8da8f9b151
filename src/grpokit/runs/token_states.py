"""The states of a token after a step, as numbers in the files of recorded tokens. Importing this imports nothing heavy."""

from __future__ import annotations

STATES = ("trained", "clipped", "masked", "no advantage", "not the model's", "not known")
TRAINED, CLIPPED, MASKED, NO_ADVANTAGE, NOT_OURS, UNKNOWN = range(len(STATES))
