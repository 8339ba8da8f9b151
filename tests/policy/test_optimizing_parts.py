"""The parts behind docs/en/optimizing.md, each against what it is meant to be: torch, transformers, bitsandbytes, peft."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import bitsandbytes
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, get_scheduler

from grpokit.config.checks import check_train_config
from grpokit.config.options import TrainConfig
from grpokit.config.schedule import SCHEDULES
from grpokit.parallel import ALONE
from grpokit.policy.eight_bit import AdamW8bit
from grpokit.policy.export import SaveFormat, save_model
from grpokit.policy.freeze import freeze
from grpokit.policy.load import load_policy, load_tokenizer
from grpokit.policy.lora import Lora
from grpokit.policy.muon import COEFFICIENTS, Muon, hidden_matrices, orthogonalise
from grpokit.policy.optimizer import describe_optimizer, make_optimizer
from grpokit.policy.policy import Float64Throughout
from grpokit.policy.reference import move_reference
from grpokit.policy.schedules import learning_rate
from grpokit.runs.optimizer_state import restore_optimizer
from grpokit.training.kl_reward import kl_metrics, subtract_kl
from grpokit.training.run import Learning
from helpers.tiny import group_of, make_model_dir, tiny_config

CPU = torch.device("cpu")

# --------------------------------------------------------------------------- schedules

KWARGS = {
    "cosine": {"num_cycles": 1.5},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0, "lr_end": 1e-4},
    "inverse_sqrt": {"timescale": 7},
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.2, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 6, "decay_type": "1-sqrt", "min_lr_ratio": 0.1},
}


def theirs(name: str, warm: int, total: int, kwargs: dict) -> list[float]:
    """transformers' own rates, step by step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_scheduler(name, optimizer, warm, total, scheduler_specific_kwargs=kwargs)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_transformers_after_warm_up(name, own):
    required = {"warmup_stable_decay": {"num_decay_steps": 4}, "cosine_with_min_lr": {"min_lr_rate": 0.1}}
    required["cosine_warmup_with_min_lr"] = required["cosine_with_min_lr"]
    kwargs = KWARGS.get(name, {}) if own else required.get(name, {})
    config = TrainConfig(
        learning_rate=1e-3,
        lr_scheduler_type=name,
        lr_scheduler_kwargs=tuple(f"{key}={value}" for key, value in kwargs.items()),
        max_steps=20,
        warmup_steps=5,
    )
    expected = theirs(name, 5, 20, kwargs)
    ours = [learning_rate(config, step) for step in range(20)]
    from_step = 0 if name in ("constant", "cosine_warmup_with_min_lr") else 5
    assert ours[from_step:] == pytest.approx(expected[from_step:], rel=1e-12, abs=1e-20)
    if from_step and name != "warmup_stable_decay":
        assert ours[:5] == [1e-3 * (step + 1) / 6 for step in range(5)]
    assert all(rate > 0 for rate in ours[:5])


def test_the_first_names_keep_their_values_to_the_bit():
    for name in ("constant", "constant_with_warmup", "linear", "cosine"):
        config = TrainConfig(learning_rate=3e-4, lr_scheduler_type=name, max_steps=17, warmup_steps=3)
        for step in range(17):
            done = (step - 3) / 14
            factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}.get(name, 1.0)
            warm = 3e-4 * (step + 1) / 4 if step < 3 and name != "constant" else 3e-4 * factor
            assert learning_rate(config, step) == warm


def test_the_floor_and_the_share_of_warm_up():
    config = TrainConfig(learning_rate=1e-3, lr_scheduler_type="cosine", max_steps=20, min_lr=1e-4)
    floor = replace(
        config, min_lr=0.0, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs=("min_lr=1e-4",)
    )
    rates = [learning_rate(config, step) for step in range(20)]
    assert rates == [learning_rate(floor, step) for step in range(20)]
    assert min(rates) > 1e-4
    warm = replace(config, warmup_ratio=0.11)  # 2.2 steps: 3
    assert [learning_rate(warm, step) for step in range(3)] == [1e-3 * n / 4 for n in (1, 2, 3)]


# --------------------------------------------------------------------------- optimizers


def newton_schulz(matrix: torch.Tensor) -> torch.Tensor:
    """The quintic on the singular values: p(p(...)) five times."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / matrix.norm()
    for _ in range(5):
        s = COEFFICIENTS[0] * s + COEFFICIENTS[1] * s**3 + COEFFICIENTS[2] * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_muon_is_its_formula_and_torchs_within_bfloat16(shape):
    torch.manual_seed(0)
    start, bias = torch.randn(*shape, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    gradients = [torch.randn(*shape, dtype=torch.float64) for _ in range(4)]
    ours, beside = nn.Parameter(start.clone()), nn.Parameter(bias.clone())
    optimizer = Muon(
        [{"params": [ours], "weight_decay": 0.1}], [{"params": [beside], "weight_decay": 0.0}], 0.02, 0.9
    )
    torchs, adams = nn.Parameter(start.clone()), nn.Parameter(bias.clone())
    real = torch.optim.Muon([torchs], 0.02, 0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW([adams], 0.02, weight_decay=0.0)
    value, buffer = start.clone(), torch.zeros_like(start)
    for gradient in gradients:
        ours.grad, torchs.grad = gradient.clone(), gradient.clone()
        beside.grad, adams.grad = gradient.flatten()[:4].clone(), gradient.flatten()[:4].clone()
        for one in (optimizer, real, adam):
            one.step()
        buffer = 0.9 * buffer + 0.1 * gradient
        direction = newton_schulz(0.1 * gradient + 0.9 * buffer)
        value = value - 0.02 * 0.1 * value - 0.02 * 0.2 * math.sqrt(9) * direction
    torch.testing.assert_close(ours.detach(), value, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.detach(), torchs.detach(), rtol=0, atol=1e-3)
    assert (start - value).abs().max() > 0.01
    assert torch.equal(beside, adams)


def test_a_matrix_of_zeros_does_not_move():
    assert torch.equal(orthogonalise(torch.zeros(3, 2)), torch.zeros(3, 2))


@pytest.mark.parametrize("tied", [False, True])
def test_muon_leaves_embeddings_and_the_head_to_adamw(tmp_path, tied):
    policy = load_policy(
        str(make_model_dir(tmp_path / "model", tied=tied)), dtype="float32", temperature=1.0, device=CPU
    )
    names = hidden_matrices(policy.model)
    assert len(names) == 7
    assert all("_proj" in name for name in names)
    optimizer = make_optimizer(policy, TrainConfig(optim="muon", muon_momentum=0.8))
    assert isinstance(optimizer, Muon)
    assert {group["momentum"] for group in optimizer.matrices} == {0.8}


def test_moments_in_8_bits_are_bitsandbytes_own():
    torch.manual_seed(0)
    shapes = [(70, 64), (20,)]  # one in 8 bits with a last block that isn't full, one too small for them
    ours, real = ([nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    for a, b in zip(ours, real, strict=True):
        b.data.copy_(a.data)
    mine = AdamW8bit([{"params": ours, "weight_decay": 0.1}], 1e-2, (0.9, 0.999), 1e-8)
    bnb = bitsandbytes.optim.AdamW8bit(real, 1e-2, weight_decay=0.1)
    for _ in range(4):
        for a, b in zip(ours, real, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        bnb.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, real, strict=True))
    assert [mine.state[p]["state1"].dtype for p in ours] == [torch.uint8, torch.float32]


def test_moments_in_8_bits_are_refused_on_other_ranks(tmp_path):
    policy = load_policy(
        str(make_model_dir(tmp_path / "model")), dtype="float32", temperature=1.0, device=CPU
    )
    optimizer = make_optimizer(policy, TrainConfig(optim="adamw_8bit"))
    with pytest.raises(ValueError, match=r"--optim adamw_8bit: .* of 2 ranks \(2 to a copy of the weights\)"):
        restore_optimizer({}, {"optimizer_layout": [2, 2]}, policy, optimizer, ALONE)


# --------------------------------------------------------------------------- what is trained, and towards what


def test_patterns_freeze_and_win(tmp_path):
    policy = load_policy(
        str(make_model_dir(tmp_path / "model", tied=True)), dtype="float32", temperature=1.0, device=CPU
    )
    model = policy.model
    freeze(model, ["lm_head", "proj"], [r"\bq_proj"])  # lm_head is another name of the embedding here
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any("embed" in name for name in trained)
    assert {name for name in trained if "proj" in name} == {"model.layers.0.self_attn.q_proj.weight"}
    for frozen, trainable, words in (
        (["q_porj"], [], "--freeze_parameters q_porj: no parameter of Qwen3ForCausalLM has such a name"),
        ([".*"], ["nowhere"], "--trainable_parameters nowhere: no parameter"),
        ([".*"], [], "freezes all parameters"),
    ):
        with pytest.raises(ValueError, match=words):
            freeze(model, frozen, trainable)


def test_a_reference_moves_by_its_share(tmp_path):
    directories = [make_model_dir(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    policy, reference = (
        load_policy(str(d), dtype="float64", temperature=1.0, device=CPU) for d in directories
    )
    before = copy.deepcopy(dict(reference.model.named_parameters()))
    reference.requires_grad_(False)
    move_reference(reference, policy, 0.6)
    for (name, now), own in zip(reference.model.named_parameters(), policy.model.parameters(), strict=True):
        torch.testing.assert_close(now, (0.6 * own + 0.4 * before[name]).detach(), rtol=0, atol=1e-15)


def test_the_kl_in_the_reward_is_the_sum_over_trainable_tokens(tmp_path):
    directories = [make_model_dir(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1))]
    policy, reference = (
        load_policy(str(d), dtype="float64", temperature=0.7, device=CPU) for d in directories
    )
    group = group_of([0.5, 0.5, math.nan], [3, 5, 2])
    masked = replace(group.rollouts[1], trainable=torch.tensor([True, False, True, True, False]))
    dropped = replace(group.rollouts[2], trainable=torch.zeros(2, dtype=torch.bool))
    group = replace(group, rollouts=(group.rollouts[0], masked, dropped))

    @torch.no_grad()
    def logps(model, ids):
        with Float64Throughout():
            logits = model.model(input_ids=torch.tensor([[1, 2, *ids]])).logits[0, 1:-1].double() / 0.7
        return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]

    expected = []
    for rollout in group.rollouts:
        ids = rollout.completion_ids.tolist()
        expected.append(float((logps(policy, ids) - logps(reference, ids))[rollout.trainable].sum()))
    [found] = subtract_kl([group], policy, reference, Learning(), 0.3)
    assert found.kl.tolist() == pytest.approx(expected, abs=1e-12)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)  # equal rewards now differ
    assert found.reward[:2].tolist() == pytest.approx([0.5 - 0.3 * kl for kl in expected[:2]])
    assert found.reward[2].isnan()
    metrics = kl_metrics([found], 0.3)
    assert metrics["kl"].value == pytest.approx(sum(expected) / 6)
    assert metrics["reward/kl"].value == pytest.approx(-0.3 * sum(expected[:2]) / 2)
    assert kl_metrics([group], 0.3) == {}


# --------------------------------------------------------------------------- adapters


@torch.no_grad()
def logits(model) -> torch.Tensor:
    with Float64Throughout():
        return model(input_ids=torch.arange(6)[None]).logits


@pytest.mark.parametrize("kind", ["rslora", "dora", "whole"])
def test_an_adapter_is_pefts_and_merges_into_the_same_model(tmp_path, kind):
    from peft import LoraConfig, PeftModel, get_peft_model

    directory = make_model_dir(tmp_path / "model")
    options = {
        "rslora": {"rank_stabilized": True},
        "dora": {"dora": True},
        "whole": {"whole_modules": ("lm_head",)},
    }
    lora = Lora(4, 8.0, ("all-linear",), str(directory), 1, **options[kind])
    policy = load_policy(str(directory), dtype="float64", temperature=1.0, device=CPU, lora=lora)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    want = logits(policy.model)
    tokenizer = load_tokenizer(str(directory))
    save_model(tmp_path / "merged", policy, tokenizer, SaveFormat("float64"))
    merged = load_policy(str(tmp_path / "merged"), dtype="float64", temperature=1.0, device=CPU)
    torch.testing.assert_close(logits(merged.model), want, rtol=0, atol=1e-12)
    save_model(tmp_path / "adapter", policy, tokenizer, SaveFormat("float64", only_adapter=True))
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    # Its rotary angles are in float32.
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), want, rtol=0, atol=1e-5)
    assert loaded.peft_config["default"].r == 4
    # The gradient is that of a model of peft's own making, with the same values.
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        modules_to_save=["lm_head"] if kind == "whole" else None,
        task_type="CAUSAL_LM",
    )
    other = (
        get_peft_model(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64), config)
        .double()
        .eval()
    )
    mine = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    theirs = {n.removeprefix("base_model.model."): p for n, p in other.named_parameters() if p.requires_grad}
    assert theirs.keys() == mine.keys()
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(mine[name])
    for model in (policy.model, other):
        with Float64Throughout():
            model(input_ids=torch.arange(6)[None]).logits.square().sum().backward()
    for name, parameter in theirs.items():
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_modules_that_cannot_be_trained_whole_are_refused(tmp_path):
    tied, other = (make_model_dir(tmp_path / name, tied=name == "tied") for name in ("tied", "other"))
    for directory, names, words in (
        (tied, ("embed_tokens",), "are one tensor"),
        (other, ("lm_haed",), r"has no module lm_haed \(did you mean 'lm_head'\?\); lm_head and embed_tok"),
        (
            tied,
            ("lm_haed",),
            "has no module lm_haed; its head and embedding are one tensor, and can't be named",
        ),
    ):
        lora = Lora(4, 8.0, ("all-linear",), str(directory), 1, whole_modules=names)
        with pytest.raises(ValueError, match=f"--lora_modules_to_save {names[0]}: .*{words}"):
            load_policy(str(directory), dtype="float32", temperature=1.0, device=CPU, lora=lora)


# --------------------------------------------------------------------------- what is refused

REFUSED = [
    ({"optim": "lion"}, "--optim lion: expected adamw, muon, adamw_8bit"),
    ({"optim": "adamw_8bit"}, "--optim adamw_8bit: computes in float32"),
    ({"muon_momentum": 1.0}, "--muon_momentum 1.0: must be at least 0 and below 1"),
    ({"lr_scheduler_type": "greedy"}, "--lr_scheduler_type greedy: follows the loss"),
    ({"lr_scheduler_type": "cosin"}, r"there is no such schedule \(did you mean 'cosine'\?\)"),
    ({"lr_scheduler_kwargs": ("num_cycles=2",)}, "num_cycles=2: not used by .* it takes none"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": ("power=2",)}, "it takes num_cycles"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": ("num_cycles",)}, "expected name=value"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": ("num_cycles=0",)}, "a number above 0"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "Add --min_lr"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "Add --lr_scheduler_kwargs num_decay_steps=1"),
    ({"lr_scheduler_type": "linear", "min_lr": 1.0}, "between 0 and --learning_rate 0.001"),
    ({"min_lr": 1e-5}, "--min_lr 1e-05: --lr_scheduler_type constant_with_warmup never ends"),
    (
        {"lr_scheduler_type": "polynomial", "min_lr": 1e-5, "lr_scheduler_kwargs": ("lr_end=1e-6",)},
        "the same",
    ),
    ({"warmup_ratio": 1.5}, "--warmup_ratio 1.5: must be at least 0 and below 1"),
    ({"warmup_ratio": 0.1, "warmup_steps": 3}, "--warmup_steps 3 says the same"),
    ({"freeze_parameters": ("(",)}, "--freeze_parameters \\(: is no regular expression"),
    ({"freeze_parameters": ("x",), "lora_r": 4}, "an adapter is trained alone"),
    ({"trainable_parameters": ("x",)}, "--trainable_parameters x: every parameter is trained"),
    ({"kl_in_reward": True}, "--kl_in_reward: is multiplied by --beta, which is 0"),
    ({"kl_in_reward": True, "beta": 0.1, "kl_estimator": "k1"}, "--kl_estimator k1: is for a KL term"),
    ({"kl_in_reward": True, "beta": 0.1, "advantage_estimator": "gdpo"}, "gdpo normalises each"),
    ({"sync_ref_model": True}, "--sync_ref_model: there is no reference with --beta 0"),
    ({"sync_ref_model": True, "beta": 0.1, "lora_r": 4}, "with an adapter"),
    ({"ref_model_mixup_alpha": 0.0}, "--ref_model_mixup_alpha 0.0: must be above 0"),
    ({"use_dora": True}, "--use_dora: is for an adapter; add --lora_r"),
    ({"use_dora": True, "lora_r": 4, "sampler": "vllm", "vllm_sync": "adapter"}, "vLLM cannot serve such"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_cannot_work_is_refused_by_name(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        check_train_config(tiny_config(tmp_path, **changes))


def test_muon_and_8_bits_say_which_parameters_they_take(tmp_path):
    """The tiny Qwen3: 7 matrices of a layer; embeddings and head apart. Tensors of 4,096 numbers and more are in 8 bits."""
    policy = load_policy(
        str(make_model_dir(tmp_path, hidden=64)), dtype="float32", temperature=1.0, device=CPU
    )
    tensors = dict(policy.model.named_parameters())
    matrices = [p for name, p in tensors.items() if name in hidden_matrices(policy.model)]
    said = describe_optimizer(make_optimizer(policy, replace(TrainConfig(), optim="muon")))
    numbers = f"{sum(p.numel() for p in matrices):,}"
    assert said.startswith(
        f"muon: 7 matrices ({numbers} parameters) by Muon; {len(tensors) - 7} other tensors ("
    )
    assert said.endswith("by AdamW: embeddings, the head, norms, biases")
    large = [p for p in tensors.values() if p.numel() >= 4096]
    said = describe_optimizer(make_optimizer(policy, replace(TrainConfig(), optim="adamw_8bit")))
    assert said.startswith(
        f"adamw_8bit: moments of {len(large)} tensors ({sum(p.numel() for p in large):,} parameters)"
    )
    assert said.endswith("in 32 bits, by the same AdamW")
    assert f"of {len(tensors) - len(large)} small ones" in said
    assert describe_optimizer(make_optimizer(policy, TrainConfig())) == ""
