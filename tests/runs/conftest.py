"""Pages that several tests of the report read."""

from __future__ import annotations

import pytest

from helpers.synthetic_runs import FORMULA, make_run, report


@pytest.fixture(scope="session")
def grpo_page(tmp_path_factory):
    """The page of an ordinary run, with its formula."""
    return report(make_run(tmp_path_factory.mktemp("grpo") / "r"), formula=FORMULA)
