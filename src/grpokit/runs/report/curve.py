"""The curve of a run's reward as a picture of its own, for a model's card."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .data import Row, RunData
from .panels import REWARD
from .plots import SIZES, draw

SIZE = "normal"


def draw_reward_curve(steps: Sequence[Row], evaluations: Sequence[Row]) -> str:
    """Draws the rewards of the steps so far as a complete SVG file. The same rows give the same bytes.

    Args:
        steps: rows of metrics.jsonl.
        evaluations: rows of evaluations.jsonl.

    Returns:
        The file's text; "" where no step has a reward.
    """
    run = RunData(Path(), {}, tuple(steps), tuple(evaluations), ())
    if not run.has("reward"):
        return ""
    svg, _ = draw(REWARD, run, SIZE)
    width, height = (round(inches * 96) for inches in SIZES[SIZE])
    # Outside the report's page there are no CSS variables and no font: writes the colours out, and names a font.
    svg = re.sub(r"var\(--[\w-]+,(#[0-9a-f]{6})\)", r"\1", svg)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
    )
    return svg.replace("<svg ", head, 1) + "\n"
