"""check_loss finds what is wrong with a surrogate, and passes what is right."""

from __future__ import annotations

import pytest

from grpokit.losses import LOSSES, SURROGATES, surrogate
from grpokit.losses.testing import check_loss


def good(log_ratio, advantages, logps, *, power: float = 2.0):
    return -advantages * log_ratio.exp() ** power / power


def averages(log_ratio, advantages, logps):
    return -(advantages - advantages.mean()) * logps


def overflows(log_ratio, advantages, logps):
    return -advantages * (log_ratio**2).exp()


def one_number(log_ratio, advantages, logps):
    return (-advantages * logps).mean()


def test_a_good_surrogate_passes():
    found = check_loss(good)
    assert found.ok
    assert found.gradient
    assert found.zero_at_zero_advantage
    assert "zero_at_zero_advantage=True" in str(found)
    assert check_loss(good, power=3.0).ok


def test_a_mean_over_the_slice_is_found():
    found = check_loss(averages)
    assert not found.ok
    assert not found.cut_invariant
    assert "reduction" in str(found)


def test_an_overflow_is_found():
    found = check_loss(overflows)
    assert not found.finite
    assert "100" in str(found)


def test_one_number_for_all_tokens_is_refused():
    with pytest.raises(ValueError, match="one value per token"):
        check_loss(one_number)


def test_a_false_promise_is_found():
    @surrogate(name="false_promise", zero_at_zero_advantage=True)
    def false_promise(log_ratio, advantages, logps):
        return -advantages * logps + log_ratio.abs()

    try:
        assert not check_loss(false_promise).ok
    finally:
        SURROGATES.pop("false_promise")


def test_a_surrogate_is_checked_from_a_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def mine(log_ratio, advantages, logps):\n    return -advantages * logps\n")
    assert check_loss(f"{file}:mine").ok
    with pytest.raises(ValueError, match="surrogate"):
        check_loss(f"{file}:yours")


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_table_passes(name):
    length = {"max_completion_length": 8} if LOSSES[name].reduction == "constant_length" else {}
    found = check_loss(LOSSES[name].surrogate, name, **length)
    assert found.ok, str(found)
    detached = {"cispo", "vespo", "dppo_tv", "dppo_kl", "fipo"}
    assert found.gradient == (LOSSES[name].surrogate not in detached), str(found)
