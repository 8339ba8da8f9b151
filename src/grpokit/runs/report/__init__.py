"""A run's directory → one self-contained HTML page, without scripts or network access; and the reward's curve alone.

Importing this imports neither matplotlib nor torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data import Row


def write_report(
    run_dir: str | Path, output: str | Path | None = None, *, formula: str | None = None
) -> Path:
    """Writes the report of a run so far.

    A run in progress works too: an incomplete last line is ignored. The same files give the same bytes.

    Args:
        run_dir: the run's --output_dir: config.yaml and metrics.jsonl, and if they exist
            evaluations.jsonl and completions.jsonl.
        output: where to write the page (default: report.html in the run).
        formula: the loss in LaTeX, one formula per line, as `Loss.formula` gives it; None: no formula.

    Returns:
        The page's path.

    Raises:
        ValueError: no such directory, not a run, no metrics yet, an output that cannot be written, or a malformed line.
            The message names the path, or file:line.
    """
    from .data import read_run
    from .page import render_page

    run = read_run(Path(run_dir))
    path = Path(output) if output is not None else run.path / "report.html"
    if path.is_dir():
        raise ValueError(f"--output {path}: is a directory; expected the name of an .html file")
    page = render_page(run, formula)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page.encode("utf-8"))
    except OSError as error:
        raise ValueError(f"--output {path}: {error.strerror}; expected a file that can be written") from error
    return path


def reward_curve(steps: Sequence[Row], evaluations: Sequence[Row]) -> str:
    """Returns the curve of the reward as an SVG file; see `draw_reward_curve`."""
    from .curve import draw_reward_curve

    return draw_reward_curve(steps, evaluations)
