"""Keys and values that episodes keep from turn to turn: the same tokens and log-probs, from fewer computed tokens."""

from __future__ import annotations

import pytest
import torch

from grpokit.rollouts.decode import Completing
from grpokit.rollouts.kept import Block, TurnCache
from helpers.agents import config_of
from helpers.running import start


def computed_and_groups(tmp_path, monkeypatch, name, **changes):
    """Counts the tokens that forwards over more than one token read."""
    counted, logits = [0], Completing._logits

    def counting(self, input_ids, mask, positions):
        counted[0] += input_ids.numel() if input_ids.shape[1] > 1 else 0
        return logits(self, input_ids, mask, positions)

    run = start(config_of(tmp_path, output_dir=str(tmp_path / name), **changes))
    with monkeypatch.context() as patch:
        patch.setattr(Completing, "_logits", counting)
        groups = run.rollouts.sampler.sample(run.prompts.take(0, 4), 4)
    run.close()
    return counted[0], groups


@pytest.mark.parametrize("changes", [{}, {"rollout_batch_size": 5}, {"share_prefill": False}])
def test_the_same_episodes_with_and_without(tmp_path, monkeypatch, changes):
    count, kept = computed_and_groups(tmp_path, monkeypatch, "kept", **changes)
    count_anew, anew = computed_and_groups(tmp_path, monkeypatch, "anew", turn_cache_gib=0.0, **changes)
    assert count < 0.6 * count_anew
    turns = set()
    for a, b in zip(
        (r for g in kept for r in g.rollouts), (r for g in anew for r in g.rollouts), strict=True
    ):
        assert a.completion_ids.tolist() == b.completion_ids.tolist()
        torch.testing.assert_close(a.logps, b.logps, rtol=0, atol=1e-9)
        turns.add(len(a.episode.turns))
    assert turns == {1, 2, 3}


def test_without_room_the_next_turn_computes_everything(tmp_path, monkeypatch):
    count, _ = computed_and_groups(tmp_path, monkeypatch, "little", turn_cache_gib=1e-6)
    count_anew, _ = computed_and_groups(tmp_path, monkeypatch, "none", turn_cache_gib=0.0)
    assert count == count_anew


def block(rows, columns, value):
    layer = tuple(torch.full((rows, 1, columns, 2), value) for _ in range(2))
    return Block((layer,), torch.ones(rows, columns, dtype=torch.bool))


def test_rows_of_several_blocks_are_put_together_without_padding():
    cache = TurnCache(10_000)
    columns = torch.tensor([[True, True, True], [False, True, True]])
    cache.add([(0, 0), (0, 1)], Block(block(2, 3, 1.0).layers, columns))
    cache.add([(1, 0)], block(1, 5, 2.0))
    found = cache.take([(1, 0), (0, 1)], [6, 5])
    assert found.columns.tolist() == [[True] * 5, [True, True, False, False, False]]
    keys = found.layers[0][0]
    assert keys.shape == (2, 1, 5 + 3 + 16, 2)
    assert keys[0, 0, :, 0].tolist() == [2] * 5 + [0] * 19
    assert keys[1, 0, :2, 0].tolist() == [1, 1]
    assert cache.take([(1, 0)], [6]) is None  # it was forgotten


def test_one_that_is_missing_or_too_much_keeps_none():
    size = sum(t.numel() * t.element_size() for t in block(1, 3, 0.0).layers[0])
    cache = TurnCache(2 * size)
    cache.add([(0, 0)], block(1, 3, 1.0))
    assert cache.take([(0, 0), (0, 1)], [4, 4]) is None
    for generation, has_room in ((0, True), (1, True), (2, False)):
        assert cache.has_room(size) == has_room
        if has_room:
            cache.add([(0, generation)], block(1, 3, 1.0))
    assert cache.take([(0, 1)], [4]) is None
    assert cache.has_room(size)  # the next turn begins anew
    cache.add([(0, 2)], block(1, 3, 1.0))
    assert cache.take([(0, 2)], [4]) is not None
