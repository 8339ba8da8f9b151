"""The models that all tests here train."""

from __future__ import annotations

import pytest

from helpers.inside_trl import make_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))
