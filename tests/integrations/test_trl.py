"""grpokit's losses inside TRL's GRPOTrainer, against TRL 1.16 itself."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integrations


def test_trl_is_the_version_that_is_tested():
    import trl

    assert trl.__version__ == "1.16.0"
