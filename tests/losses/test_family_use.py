"""The family in use: adding a loss, lint, recorded batches side by side, the command line, advantage estimators."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from grpokit.batch.advantages import add_advantages
from grpokit.commands.cli import main
from grpokit.commands.compare_batch import compare, cosines
from grpokit.config.options import TrainConfig
from grpokit.losses import LOSSES, SURROGATES, LossRow, make_loss, register, surrogate
from grpokit.losses.family import _ROWS
from grpokit.losses.lint import notes
from grpokit.losses.testing import check_loss
from grpokit.runs.batches import read_batch
from grpokit.training.setup.loss import loss_from_config
from helpers.family_data import assert_same, flat, make_step, run
from helpers.running import start, train
from helpers.tiny import group_of, tiny_config

WHOLE = [slice(None)]


# --------------------------------------------------------------------------- adding a loss


@pytest.fixture
def toy():
    """One function and one row: the whole of adding a loss."""

    @surrogate(formula=r"\ell = -A\,\sqrt{\rho}", zero_at_zero_advantage=True)
    def root(log_ratio, advantages, logps, *, strength: float = 1.0):
        return -strength * advantages * (0.5 * log_ratio).exp()

    register("toy", LossRow("token", "root", "token_mean", "nowhere", "a square root", {"strength": 2.0}))
    yield "toy"
    _ROWS.pop("toy")
    SURROGATES.pop("root")


@pytest.mark.full_report
def test_a_loss_added_by_one_function_and_one_row(toy, tmp_path, capsys):
    loss = make_loss(toy)
    assert loss.options == {"strength": 2.0}
    step = make_step(1)
    batch = flat(loss, step)
    parts = list(torch.arange(len(batch)).tensor_split(3))
    assert_same(run(loss, batch, parts), run(loss, batch, WHOLE))
    assert check_loss("root", toy).ok
    assert main(["losses", "list"]) == 0
    assert "a square root" in " ".join(capsys.readouterr().out.split())
    config = tiny_config(tmp_path, loss_type=toy, loss_kwargs=("strength=0.5",), max_steps=1)
    assert loss_from_config(config).options == {"strength": 0.5}
    r = start(config)
    train(r)
    r.close()
    assert (r.output / "report.html").exists()


def test_a_name_is_taken_once(toy):
    with pytest.raises(ValueError, match="in the table already"):
        register(toy, LOSSES["grpo"])
    with pytest.raises(ValueError, match="surrogate 'clipp'"):
        register("other", dataclasses.replace(LOSSES["grpo"], surrogate="clipp"))


def test_a_surrogate_from_a_users_file(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def mine(log_ratio, advantages, logps, *, slope: float = 1.0):\n    return -slope * advantages * logps\n"
    )
    config = tiny_config(tmp_path, surrogate=f"{file}:mine", loss_kwargs=("slope=2",), max_steps=1)
    loss = loss_from_config(config)
    assert loss.options == {"slope": 2.0}
    assert not loss.drops_dead_rows  # nothing is known of it, so nothing is taken for granted
    r = start(config)
    train(r)
    r.close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss_kwargs": ("epsilon=0.1",)}, "flag of its own"),
        ({"loss_kwargs": ("slope",)}, "name=value"),
        ({"loss_kwargs": ("slope=1",)}, "slope 1.0: not used"),
        ({"surrogate": "nowhere.py:f"}, "nowhere.py"),
        ({"loss_type": "luspo", "importance_sampling_level": "token"}, "ratio_level token"),
    ],
)
def test_mistakes_in_composing_a_loss_are_refused(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        loss_from_config(dataclasses.replace(TrainConfig(), **changes))


def test_importance_sampling_level_is_ratio_levels_other_name():
    config = TrainConfig(
        loss_type="grpo", importance_sampling_level="sequence_token", epsilon=3e-4, epsilon_high=4e-4
    )
    assert loss_from_config(config).ratio_level == "sequence_token"


# --------------------------------------------------------------------------- lint


@pytest.mark.parametrize(
    ("name", "options", "updates", "words"),
    [
        ("gspo", {"epsilon": 0.2, "epsilon_high": 0.2}, None, "3e-4"),
        ("grpo", {}, 1, "num_iterations 2"),
        ("sapo", {}, 1, "tau_pos"),
        ("kl_cov", {}, 1, "no gradient"),
        ("m2po", {}, 1, "m2_threshold"),
    ],
)
@pytest.mark.filterwarnings("ignore:epsilon")
def test_combinations_that_mislead_are_noted(name, options, updates, words):
    assert any(words in note for note in notes(make_loss(name, **options), updates))


def test_make_loss_warns_of_gspos_epsilon():
    with pytest.warns(UserWarning, match="3e-4"):
        make_loss("gspo", epsilon=0.2)


def test_defaults_are_not_noted():
    for name in LOSSES:
        assert notes(make_loss(name), updates_per_rollout=2) == []
    assert any(
        "engine of its own" in n
        for n in notes(make_loss("grpo", correction_mode="mask"), 2, sampler_is_trainer=True)
    )


# --------------------------------------------------------------------------- recorded batches


def test_recorded_batches_are_compared_loss_by_loss(tmp_path, capsys):
    config = tiny_config(tmp_path, loss_type="dapo", record_batches=1, max_steps=2, dtype="float32")
    r = start(config)
    train(r)
    r.close()
    files = list((r.output / "batches").iterdir())
    assert [f.name for f in files] == ["step-1.safetensors"]
    fields = read_batch(files[0])
    assert not torch.equal(fields["logps"], fields["old_logps"])  # after the step against before
    torch.testing.assert_close(
        fields["old_logps"].double(), fields["sampler_logps"].double(), rtol=0, atol=1e-4
    )
    found = compare(files[0])
    assert [c.loss.name for c in found] == list(LOSSES)
    assert not any(c.refused for c in found)
    picture = tmp_path / "compare.png"
    assert (
        main(["compare-batch", str(files[0]), "--losses", "grpo", "dapo", "cispo", "--output", str(picture)])
        == 0
    )
    out = capsys.readouterr().out
    for word in ("grpo", "dapo", "cispo", "cosine", "‖g‖", "ESS"):
        assert word in out
    assert picture.stat().st_size > 10_000


def test_compare_gives_the_cosines_of_a_hand_made_case(tmp_path):
    """reinforce and importance_sampling on-policy have the same gradient, −A/N: cosine 1, norm √Σ(A/N)²."""
    path = tmp_path / "batch.npz"
    np.savez(
        path,
        logps=np.array([-1.0, -2.0, -0.5]),
        advantages=np.array([1.0, 1.0, -2.0]),
        sequence_ids=np.array([0, 0, 1]),
    )
    a, b, c = compare(path, ["reinforce", "importance_sampling", "dppo_tv"])
    assert a.norm == pytest.approx((6**0.5) / 3)
    assert float(cosines([a, b])[0, 1]) == pytest.approx(1)
    assert "sampler" in c.refused


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"logps": [0.0]}, "has no advantages"),
        ({"logps": [0.0], "advantages": [0.0], "sequence_ids": [0], "logits": [0.0]}, "unknown field logits"),
        ({"logps": [], "advantages": [], "sequence_ids": []}, "no tokens"),
    ],
)
def test_batches_that_cannot_be_read(tmp_path, fields, words):
    np.savez(tmp_path / "b.npz", **{k: np.array(v) for k, v in fields.items()})
    with pytest.raises(ValueError, match=words):
        compare(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"nonsense")
    for name in ("c.npz", "missing.npz", "b.txt"):
        with pytest.raises(ValueError, match=name):
            compare(tmp_path / name)


def test_pickled_arrays_are_not_loaded(tmp_path):
    np.savez(tmp_path / "b.npz", logps=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"b\.npz"):
        compare(tmp_path / "b.npz")


# --------------------------------------------------------------------------- advantages


def advantages(groups, *options, **more):
    return [g.advantages.tolist() for g in add_advantages(groups, *options, **more)]


def test_reinforce_plus_plus_by_hand():
    """d = −1, 1 | −2, 2: mean 0, unbiased variance (1 + 1 + 4 + 4)/3."""
    std = (10 / 3) ** 0.5 + 1e-4
    got = advantages([group_of([0, 2]), group_of([0, 4]), group_of([5, 5])][:2], "reinforce_plus_plus")
    assert got == [pytest.approx([-1 / std, 1 / std]), pytest.approx([-2 / std, 2 / std])]
    assert advantages([group_of([0, 2]), group_of([5, 5])], "reinforce_plus_plus")[1] == [0, 0]


def test_opo_gives_the_advantages_of_a_hand_made_case():
    """Lengths 1 and 3, rewards 0 and 1: baseline (1·0 + 3·1)/4 = 0.75."""
    assert advantages([group_of([0, 1], [1, 3])], "opo") == [pytest.approx([-0.75, 0.25])]


def test_gdpo_gives_the_advantages_of_a_hand_made_case():
    """Two functions, weights 1 and 2, each normalised by itself within the group; then over the step."""
    group = dataclasses.replace(
        group_of([0, 0]), rewards=torch.tensor([[0.0, 3.0], [10.0, 1.0]], dtype=torch.float64)
    )
    one = [d / (50**0.5 + 1e-4) for d in (-5, 5)]  # unbiased std of 0, 10
    two = [2 * d / (2**0.5 + 1e-4) for d in (1, -1)]  # of 3, 1
    total = torch.tensor([a + b for a, b in zip(one, two, strict=True)], dtype=torch.float64)
    want = total / (total.std() + 1e-4)
    assert advantages([group], "gdpo", "group", [1.0, 2.0]) == [pytest.approx(want.tolist())]


@pytest.mark.parametrize("estimator", ["reinforce_plus_plus", "opo", "gdpo"])
def test_dead_groups_are_exactly_zero(estimator):
    groups = [group_of([0.1] * 8), group_of([0.0, 1.0]), group_of([float("nan"), 3.0])]
    found = advantages(groups, estimator)
    assert found[0] == [0.0] * 8
    assert found[2] == [0.0, 0.0]


# --------------------------------------------------------------------------- command line


def test_the_losses_commands_list_show_and_plot(tmp_path, capsys):
    assert main(["losses", "show", "gspo"]) == 0
    assert "gspo" in capsys.readouterr().out
    assert main(["losses", "plot", "grpo", "cispo", "--output", str(tmp_path / "p.svg")]) == 0
    assert all(Path(line).exists() for line in capsys.readouterr().out.split())
    assert main(["losses", "show", "gsop"]) == 2
    assert "gspo" in capsys.readouterr().err
    assert main(["losses", "show"]) == 2


@pytest.mark.parametrize("name", ["gspo", "real", "clip_cov", "dppo_tv"])
def test_a_run_of_the_family(tmp_path, name):
    config = tiny_config(
        tmp_path, loss_type=name, max_steps=2, beta=0.01, num_iterations=2, advantage_estimator="opo"
    )
    r = start(config)
    train(r)
    r.close()
    rows = [json.loads(line) for line in (r.output / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(np.isfinite(v) for row in rows for v in row.values())
