"""Representative families of models train as a plain loop does, in every step, with adapters and through a resume."""

from __future__ import annotations

import pytest

from helpers.places import ROOT

FAMILIES = [
    "Llama",
    "Qwen2",
    "Qwen3",
    "Qwen3-MoE",
    "Gemma 3",
    "Mistral with a window",
    "gpt-oss",
    "DeepSeek-V3",
    "Phi-3",
    "GLM-4",
    "Falcon",
    "Falcon-H1",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_as_a_plain_loop_does(tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import families

    found = families.tried(name, tmp_path)
    assert found.trains.startswith("exact")
    assert (found.lora, found.resumes) == ("yes", "yes")


def test_the_check_can_fail(tmp_path, monkeypatch):
    """A learning rate that isn't the plain loop's, and log-probs of another temperature, are found out."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import families

    path = families.make_model(tmp_path / "model", "Llama")
    trained = families.trained
    for change in ({"learning_rate": 1.1e-3}, {"temperature": 1.01}):
        monkeypatch.setattr(
            families, "trained", lambda *args, change=change, **more: trained(*args, **(more | change))
        )
        problem, _ = families.check_training(path, tmp_path / str(change), "float32")
        assert "apart in float32" in problem
