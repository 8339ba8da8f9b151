"""Reports with every figure built, and none rendered: rendering is two thirds of a tiny run's time."""

from __future__ import annotations

import pytest

import grpokit.runs.report

write_report = grpokit.runs.report.write_report
reward_curve = grpokit.runs.report.reward_curve


def write_report_without_pixels(*arguments, **options):
    """The report, with an empty picture for each figure."""
    from grpokit.runs.report import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "figure_svg", lambda figure, name, label: "<svg></svg>")
        return write_report(*arguments, **options)


def quick(patch: pytest.MonkeyPatch | None = None) -> None:
    """Runs of this process end with the quick report, and a card without its curve."""
    patch = patch or pytest.MonkeyPatch()
    patch.setattr(grpokit.runs.report, "write_report", write_report_without_pixels)
    patch.setattr(grpokit.runs.report, "reward_curve", lambda steps, evaluations: "<svg></svg>\n")


def full(patch: pytest.MonkeyPatch) -> None:
    """Runs of this process end with the report and the card that a user gets."""
    patch.setattr(grpokit.runs.report, "write_report", write_report)
    patch.setattr(grpokit.runs.report, "reward_curve", reward_curve)


def none() -> None:
    """Runs of this process end without a report, where it is of no interest."""
    quick()
    grpokit.runs.report.write_report = lambda *_, **__: "no report"
