"""Runs that nothing happens to, for the tests of faults to compare with."""

from __future__ import annotations

import pytest

from grpokit.commands.cli import main
from helpers.disturbed import write_config


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run that nothing happens to, and the directory of its model and data."""
    directory = tmp_path_factory.mktemp("faults")
    command = write_config(
        directory, eval_dataset=str(directory / "train.jsonl"), eval_samples=2, eval_steps=4
    )
    assert main([*command, "--output_dir", str(directory / "undisturbed")]) == 0
    return directory
