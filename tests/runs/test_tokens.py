"""Files of recorded tokens: which completions, what is said of each token, and how much disk they take."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from grpokit.commands.tasks import sort_digits
from grpokit.runs.token_states import CLIPPED, MASKED, NO_ADVANTAGE, NOT_OURS, STATES, TRAINED, UNKNOWN
from grpokit.runs.tokens import Pieces, TokenFiles, TracedTokens, choose, completion_records, token_tensors
from grpokit.types.episode import Episode
from helpers.tiny import group_of


def with_advantages(group, advantages):
    return dataclasses.replace(group, advantages=torch.tensor(advantages, dtype=torch.float64))


def traced(trained, policy, factor=None):
    """What an update did: the pull is the policy's."""
    trained, policy = torch.tensor(trained), torch.tensor(policy)
    return TracedTokens(
        trained,
        torch.full_like(policy, 1.1),
        policy,
        policy,
        torch.ones_like(policy) if factor is None else factor,
    )


def test_the_best_and_the_worst_completions_are_among_those_chosen():
    groups = [group_of([0.0, 5.0, 1.0]), group_of([2.0, -3.0, 4.0])]
    assert choose(groups, 2) == [1, 4]
    assert choose(groups, 3) == [1, 3, 4] or choose(groups, 3) == [1, 2, 4]
    assert choose(groups, 1) == [1]
    assert choose(groups, 6) == choose(groups, 99) == [0, 1, 2, 3, 4, 5]


def test_a_completion_without_a_reward_counts_as_the_worst():
    assert choose([group_of([math.nan, 1.0, 0.5])], 2) == [0, 1]


def test_the_state_of_each_token_says_what_became_of_it():
    group = with_advantages(group_of([1.0, 0.0, 0.5, 0.0], [4, 2, 2, 2]), [1.0, -1.0, 0.0, -1.0])
    done = {
        0: traced([True, True, False, True], [0.5, 0.0, 0.5], torch.tensor([1.0, 1.0, 0.0])),
        1: traced([True, True], [-0.5, -0.5]),
    }
    tensors, _ = token_tensors([group], [0, 1, 2, 3], done, Pieces(sort_digits.make_tokenizer()))
    assert tensors["state"].tolist() == [
        *[TRAINED, CLIPPED, MASKED, MASKED],  # the third was not in the update, the fourth has the factor 0
        *[TRAINED, TRAINED],
        *[NO_ADVANTAGE] * 2,
        *[UNKNOWN] * 2,  # it has an advantage, and no update has trained on it
    ]
    assert tensors["ratios"][:4].tolist() == pytest.approx([1.1, 1.1, math.nan, 1.1], nan_ok=True)
    assert tensors["pull"][:2].tolist() == [0.5, 0.0]
    assert tensors["pull"][6:].isnan().all()
    assert tensors["advantages"].tolist() == [1.0] * 4 + [-1.0] * 2 + [0.0] * 2 + [-1.0] * 2


def test_tokens_of_an_environment_and_of_a_masked_completion_are_told_apart():
    group = with_advantages(group_of([1.0, 0.0], [4, 2]), [1.0, -1.0])
    episode = Episode((1,), [{"role": "assistant", "content": "x"}], ((0, 2), (3, 4)), "done")
    first, second = group.rollouts
    first = dataclasses.replace(first, episode=episode, trainable=torch.tensor([True, True, False, True]))
    second = dataclasses.replace(second, trainable=torch.zeros(2, dtype=torch.bool))
    group = dataclasses.replace(group, rollouts=(first, second))
    done = {0: traced([True, True, False, True], [0.5, 0.5, 0.5])}
    tensors, _ = token_tensors([group], [0, 1], done, Pieces(sort_digits.make_tokenizer()))
    assert tensors["state"].tolist() == [TRAINED, TRAINED, NOT_OURS, TRAINED, MASKED, MASKED]
    [record, _] = completion_records([group], [0, 1], [])
    assert record["ending"] == "done"
    assert record["turns"] == 2


def test_a_token_without_advantage_that_a_kl_pulls_at_is_trained():
    group = with_advantages(group_of([1.0], [1]), [0.0])
    one = torch.ones(1)
    done = {0: TracedTokens(torch.tensor([True]), one, 0.2 * one, 0 * one, one)}
    tensors, _ = token_tensors([group], [0], done, Pieces(sort_digits.make_tokenizer()))
    assert tensors["state"].tolist() == [TRAINED]


def test_advantages_of_single_tokens_are_their_own():
    group = with_advantages(group_of([1.0], [3]), [0.5])
    group = dataclasses.replace(group, token_advantages=(torch.tensor([1.0, 0.0, 0.5]),))
    tensors, _ = token_tensors([group], [0], {}, Pieces(sort_digits.make_tokenizer()))
    assert tensors["advantages"].tolist() == [1.0, 0.0, 0.5]
    assert tensors["state"].tolist() == [UNKNOWN, NO_ADVANTAGE, UNKNOWN]


def test_a_file_has_what_is_documented_and_numpy_reads_it(tmp_path):
    group = with_advantages(group_of([1.0, 0.0], [3, 2]), [1.0, -1.0])
    tokenizer = sort_digits.make_tokenizer()
    tensors, pieces = token_tensors([group], [0, 1], {}, Pieces(tokenizer))
    TokenFiles(tmp_path).write(12, tensors, pieces, completion_records([group], [0, 1], []))
    path = tmp_path / "step-000012.safetensors"
    found = load_file(path)
    kinds = {name: str(column.dtype) for name, column in found.items()}
    assert kinds == {
        **dict.fromkeys(("lengths", "ids", "piece"), "int32"),
        **dict.fromkeys(("trainable", "state"), "uint8"),
        **dict.fromkeys(("logps", "entropies", "advantages", "ratios", "pull"), "float32"),
    }
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    texts = json.loads(metadata["pieces"])
    assert metadata["step"] == "12"
    assert [texts[k] for k in found["piece"]] == [tokenizer.decode([i]) for i in found["ids"].tolist()]
    assert [each["reward"] for each in json.loads(metadata["completions"])] == [1.0, 0.0]
    assert len(STATES) == 6


def test_files_stay_below_the_bound_and_evenly_spaced(tmp_path):
    tensors = {"ids": torch.zeros(1000, dtype=torch.int32)}
    files = TokenFiles(tmp_path, most_bytes=10 * 4300)
    for step in range(1, 101):
        files.write(step, tensors, [], [])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= files.most_bytes
        assert step in files.steps()
    steps = files.steps()
    assert len(steps) >= 5
    assert len({b - a for a, b in itertools.pairwise(steps[:-1])}) == 1


def test_one_file_alone_may_be_over_the_bound(tmp_path):
    files = TokenFiles(tmp_path, most_bytes=10)
    for step in (1, 2, 3):
        files.write(step, {"ids": torch.zeros(100)}, [], [])
        assert files.steps() == [step]


def test_a_resumed_run_removes_the_files_of_later_steps(tmp_path):
    files = TokenFiles(tmp_path)
    for step in (1, 2, 3):
        files.write(step, {"ids": torch.zeros(1)}, [], [])
    files.cut(2)
    assert files.steps() == [1, 2]
    assert TokenFiles(tmp_path).steps() == [1, 2]


class SpaceDropping:
    """A tokenizer whose decode drops the space before a first word, as SentencePiece's does."""

    words: dict = {5: "▁the", 6: "re", 7: "<0xE6>"}  # noqa: RUF012

    def decode(self, ids, **_):
        return {5: "the", 6: "re", 7: "\ufffd"}[ids[0]]

    def convert_ids_to_tokens(self, token):
        return self.words[token]


def test_pieces_keep_the_space_before_a_word():
    pieces = Pieces(SpaceDropping())
    assert [pieces.text(token) for token in (5, 6, 7, 5)] == [" the", "re", "\ufffd", " the"]
