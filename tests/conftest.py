"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os

# One thread: the models here are tiny, and a run of the suite uses a process per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

import grpokit.runs.report

pytest.register_assert_rewrite("helpers")
torch.set_num_threads(1)
settings.register_profile("whole", deadline=None, print_blob=True, max_examples=50)
settings.register_profile("quick", settings.get_profile("whole"), max_examples=25)  # for `make test`
settings.load_profile("whole")


def pytest_collection_modifyitems(items):
    """Put files with slow tests first: a worker gets whole files, and the last ones must be short."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("vllm")}
    items.sort(key=lambda item: item.path not in slow)


# --------------------------------------------------------------------------- reports

write_report = grpokit.runs.report.write_report
reward_curve = grpokit.runs.report.reward_curve


def write_report_without_pixels(*arguments, **options):
    """The report with every figure built, and none rendered: rendering is two thirds of a tiny run's time."""
    from grpokit.runs.report import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "figure_svg", lambda figure, name, label: "<svg></svg>")
        return write_report(*arguments, **options)


@pytest.fixture(scope="session", autouse=True)
def _quick_reports():
    """Runs in this process end with the quick report, and a card without its curve; see the marker `full_report`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpokit.runs.report, "write_report", write_report_without_pixels)
        patch.setattr(grpokit.runs.report, "reward_curve", lambda steps, evaluations: "<svg></svg>\n")
        yield


@pytest.fixture(autouse=True)
def _full_report(request, _quick_reports):
    """A test that is marked `full_report` gets the report as the user does."""
    if request.node.get_closest_marker("full_report") is None:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grpokit.runs.report, "write_report", write_report)
        patch.setattr(grpokit.runs.report, "reward_curve", reward_curve)
        yield
