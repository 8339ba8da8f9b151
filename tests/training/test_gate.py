"""The gate: what a run will rely on is tried before its first step, and what fails is refused or gone around."""

from __future__ import annotations

import pytest
import torch

from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from grpokit.policy.load import load_policy
from grpokit.rollouts.trial import log_probs_alone
from grpokit.training.setup import gate, ways
from helpers.architectures import SIZES, save
from helpers.running import start, train
from helpers.tiny import make_model_dir, tiny_config, write_rows

FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT_NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
    "max_position_embeddings": 64,
}
LONGROPE = SIZES | {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "long_factor": [2.0] * 4,
        "short_factor": [1.0] * 4,
        "original_max_position_embeddings": 6,
    },
    "original_max_position_embeddings": 6,
}
RWKV = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64}


def run_of(tmp_path, name, settings, **changes):
    """A run on a tiny model of that architecture."""
    save(tmp_path / "model", name, settings)
    return start(tiny_config(tmp_path, **{"dtype": "float32", "max_steps": 2} | changes))


def furthest_from_alone(run) -> float:
    """The largest gap between the log-probs of a step's rollouts and those of each row alone."""
    groups = run.rollouts.sampler.sample(run.prompts.take(0, 4), 2)
    gaps = []
    for group in groups:
        for rollout in group.rollouts:
            ids = [*group.prompt.ids, *rollout.completion_ids.tolist()]
            alone = log_probs_alone(run.policy, ids)[len(group.prompt.ids) - 1 :]
            gaps.append(float((alone - rollout.logps).abs().max()))
    return max(gaps)


@pytest.mark.parametrize("alibi", [False, True])
def test_falcon_is_sampled_from_its_own_distribution(tmp_path, capsys, alibi):
    run = run_of(tmp_path, "FalconConfig", FALCON | {"alibi": alibi, "new_decoder_architecture": False})
    assert furthest_from_alone(run) < 1e-4
    train(run)
    run.close()
    assert "checked: FalconForCausalLM: rows padded" in capsys.readouterr().out


def test_a_window_that_only_masks_know_forbids_shared_prompts(tmp_path):
    run = run_of(tmp_path, "GPTNeoConfig", GPT_NEO)
    assert run.layout.share == "never"
    assert "log-probs differ" in run.layout.shares_not
    assert furthest_from_alone(run) < 1e-4
    run.close()


def test_rotary_frequencies_that_depend_on_the_neighbours_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"--model .*: rows of Phi3ForCausalLM .* differ from each row alone"
    ):
        run_of(tmp_path, "Phi3Config", LONGROPE)


def test_below_the_switch_such_a_model_trains(tmp_path):
    longer = {"original_max_position_embeddings": 32}
    settings = LONGROPE | longer | {"rope_parameters": LONGROPE["rope_parameters"] | longer}
    run = run_of(tmp_path, "Phi3Config", settings)
    assert furthest_from_alone(run) < 1e-4
    run.close()


def test_a_model_whose_rows_change_each_other_in_generate_is_sampled_row_by_row(tmp_path, capsys):
    run = run_of(tmp_path, "RwkvConfig", RWKV)
    assert "rows padded, sampled row by row" in capsys.readouterr().out
    assert furthest_from_alone(run) < 1e-4
    run.close()


def test_a_prompt_with_a_token_that_the_model_lacks_is_refused(tmp_path, capsys):
    from transformers import AutoTokenizer

    model = make_model_dir(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(model)
    run = start(tiny_config(tmp_path, max_steps=1))
    assert "tokens of the tokenizer, such as '<new>', have no row" in capsys.readouterr().out
    run.close()
    rows = [{"prompt": "31=", "answer": "13"}, {"prompt": "<new>=", "answer": ""}]
    write_rows(tmp_path / "train.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"train.jsonl:2: the prompt has the token \d+, and the model's embedding has"
    ):
        start(tiny_config(tmp_path, output_dir=str(tmp_path / "other")))


def test_a_padding_token_without_a_row_is_replaced(tmp_path, capsys):
    from transformers import AutoTokenizer

    model = make_model_dir(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(model)
    run = start(tiny_config(tmp_path, max_steps=1))
    train(run)
    run.close()
    assert "the padding token '[PAD]' has no row" in capsys.readouterr().out


def test_a_model_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path, monkeypatch, capsys):
    from transformers import PreTrainedModel

    def refuses(*_, **__):
        raise ValueError("this config is invalid")

    config = tiny_config(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", refuses)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "cannot be saved again: ValueError: this config is invalid" in capsys.readouterr().err
    assert (
        not (tmp_path / "run" / "metrics.jsonl").exists()
        or not (tmp_path / "run" / "metrics.jsonl").read_text()
    )


def test_the_twin_sees_a_wrong_mask(tmp_path, monkeypatch):
    """The check itself can fail: a decode loop that ignores padding is found out."""
    from grpokit.rollouts.decode import Completing

    begin = Completing.start
    monkeypatch.setattr(Completing, "start", lambda self, ids, mask, *rest: begin(self, ids, None, *rest))
    ways._found.clear()
    run = run_of(tmp_path, "LlamaConfig", SIZES)
    assert "log-probs differ by" in run.policy.loop_not
    assert run.policy.generate_not is None
    monkeypatch.undo()
    ways._found.clear()
    run.close()


def test_eval_refuses_what_training_refuses(tmp_path, capsys):
    save(tmp_path / "model", "Phi3Config", LONGROPE)
    config = tiny_config(tmp_path)
    words = [
        "eval",
        "--model",
        config.model,
        "--dataset",
        *config.dataset,
        "--reward_funcs",
        *config.reward_funcs,
    ]
    assert main([*words, "--max_completion_length", "8"]) == 2
    assert "differ from each row alone" in capsys.readouterr().err


# --------------------------------------------------------------------------- the model itself


@pytest.fixture
def no_twin(monkeypatch):
    """Only the model itself can be tried."""

    def refuses(_):
        raise ValueError("no small model can be built")

    monkeypatch.setattr(ways, "make_twin", refuses)
    ways._found.clear()
    yield
    ways._found.clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_mask_is_seen_on_the_model_itself(tmp_path, monkeypatch, no_twin, dtype):
    from grpokit.rollouts.decode import Completing

    run = run_of(tmp_path, "LlamaConfig", SIZES, dtype=dtype, output_dir=str(tmp_path / "right"))
    assert run.policy.loop_not is None
    run.close()
    begin = Completing.start
    monkeypatch.setattr(Completing, "start", lambda self, ids, mask, *rest: begin(self, ids, None, *rest))
    run = run_of(tmp_path, "LlamaConfig", SIZES, dtype=dtype)
    assert "on the model itself, in short rows" in run.policy.loop_not
    assert run.policy.generate_not is None
    run.close()


def test_full_length_is_tried_where_it_is_asked_for(tmp_path, no_twin, capsys):
    """Rotary frequencies that switch after 20 tokens: short rows don't show it."""
    later = {"original_max_position_embeddings": 20}
    settings = LONGROPE | later | {"rope_parameters": LONGROPE["rope_parameters"] | later}
    long = {"max_completion_length": 30}
    run_of(tmp_path, "Phi3Config", settings, output_dir=str(tmp_path / "quick"), **long).close()
    assert "no small model can be built; only the model itself was tried" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"differ from each row alone .*in rows of up to \d+ tokens.*at most 20"
    ):
        run_of(tmp_path, "Phi3Config", settings, check="full", **long)


def test_full_length_passes_for_a_model_that_is_exact(tmp_path, capsys):
    run = run_of(tmp_path, "LlamaConfig", SIZES, check="full", max_completion_length=40, beta=0.1)
    said = capsys.readouterr().out
    assert (
        "rows padded, packed, shared prompts, sampled by the loop; the model itself, in rows of up to" in said
    )
    train(run)
    run.close()


def test_layouts_of_the_model_itself_are_tried_where_it_does_not_sample(tmp_path, no_twin):
    """As with vLLM, or of a reference: the switch after 8 tokens shows in short rows."""
    early = {"original_max_position_embeddings": 8}
    settings = LONGROPE | early | {"rope_parameters": LONGROPE["rope_parameters"] | early}
    path = str(save(tmp_path / "model", "Phi3Config", settings))
    policy = load_policy(path, dtype="float32", temperature=1.0, device=torch.device("cpu"))
    config = tiny_config(tmp_path, dtype="float32")
    with pytest.raises(ValueError, match=r"forwarded together differ .* on the model itself, in short rows"):
        gate.check_model(policy, "m", 30, config, samples=False)


def test_too_little_memory_is_not_called_a_difference(tmp_path, monkeypatch):
    run = run_of(tmp_path, "LlamaConfig", SIZES)
    run.close()
    forward = type(run.policy).forward

    def too_large(policy, micro, *args, **how):
        if len(micro.samples) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return forward(policy, micro, *args, **how)

    monkeypatch.setattr(type(run.policy), "forward", too_large)
    config = tiny_config(tmp_path, dtype="float32", check="full", output_dir=str(tmp_path / "other"))
    with pytest.raises(
        ValueError, match=r"cannot be computed .*: CUDA out of memory.*lower --micro_batch_tokens"
    ):
        gate.check_model(run.policy, "m", 30, config)
