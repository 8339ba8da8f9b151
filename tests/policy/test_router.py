"""The router auxiliary loss: transformers' own on the whole update, the same however the update is cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from grpokit import GRPOTrainer
from grpokit.batch.advantages import add_advantages
from grpokit.batch.collate import collate
from grpokit.batch.plan import plan_step
from grpokit.commands.replay import run_again
from grpokit.config.checks import check_train_config
from grpokit.config.options import TrainConfig
from grpokit.config.yaml import to_yaml
from grpokit.policy.architecture import run_backbone
from grpokit.policy.learn import Learning, NonFiniteError, StepProgress, learn, optimize
from grpokit.policy.load import load_policy
from grpokit.policy.lora import Lora, adapted_layers
from grpokit.policy.probes import find_router_loss
from grpokit.policy.router import Balance, RouterLoss, expert_use
from grpokit.runs.dumps import read_offender, write_offender
from grpokit.runs.metrics import values
from grpokit.types import Prompt, Rollout, RolloutGroup
from helpers import forked
from helpers.architectures import SIZES, save
from helpers.family_data import build
from helpers.launch import rows
from helpers.tiny import make_model_dir, tiny_config

CPU = torch.device("cpu")
EXPERTS, TOP_K, COEFFICIENT = 4, 2, 0.5
MOE = SIZES | {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": 16}
PROMPTS = (9, 3, 6)  # tokens of each prompt
COMPLETIONS = ((7, 1, 12, 4), (1, 1, 5, 1), (5, 6, 2, 9))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("moe") / "model", "Qwen3MoeConfig", MOE)


def load(path, dtype="float64", **options):
    return load_policy(str(path), dtype=dtype, temperature=0.9, device=CPU, **options)


def groups_of():
    """Three groups of four, of uneven lengths. The second has equal rewards, so its rows are dead."""
    noise = torch.Generator().manual_seed(0)
    groups = []
    for p, (prompt, lengths) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        ids = tuple(torch.randint(3, 14, (prompt,), generator=noise).tolist())
        rollouts = tuple(
            Rollout(
                completion_ids=torch.randint(3, 14, (n,), generator=noise),
                logps=-2 - torch.rand(n, generator=noise),
                entropies=torch.ones(n),
                text="",
                finish_reason="stop",
                policy_version=0,
                trainable=torch.arange(n) % 3 != 2,
            )
            for n in lengths
        )
        reward = torch.tensor([1.0] * 4 if p == 1 else [0.0, 1.0, 0.5, 0.2]).double()
        groups.append(RolloutGroup(Prompt(p, ids, "", {}, f"t:{p}"), rollouts, reward[:, None], reward))
    return add_advantages(groups)


def learned(path, name="dapo", coefficient=COEFFICIENT, lora=None, recompute=False, **how):
    """The weights after two optimizer steps, and the metrics."""
    loss = build(
        name, **({"cov_low": 0.001, "cov_high": 1e9, "cov_ratio": 0.3} if name == "clip_cov" else {})
    )
    policy = load(path, gradient_checkpointing=recompute, lora=lora)
    router = find_router_loss(policy, coefficient)
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    step = StepProgress(plan_step(groups_of(), loss))
    options = Learning(num_iterations=2, max_grad_norm=0, router=router, **how)
    metrics = values(learn(policy, None, step, loss, optimizer, options))
    return torch.cat([p.detach().flatten() for p in policy.parameters()]), metrics


@pytest.mark.parametrize("name", ["dapo", "clip_cov"])
def test_the_same_weights_however_the_update_is_cut(directory, name):
    """Padded and with shared prompts, in micro-batches of any size, whether dead rows may be dropped or not."""
    weights, metrics = learned(directory, name, micro_batch_tokens=10_000, drop_dead_rows=False)
    assert metrics["aux_loss"] > 0
    assert metrics["frac_tokens_dropped"] == 0
    for budget in (10_000, 60, 1):
        for share in ("never", "always"):
            other, theirs = learned(directory, name, micro_batch_tokens=budget, share=share)
            torch.testing.assert_close(other, weights, rtol=0, atol=1e-11)
            assert theirs == pytest.approx(metrics, rel=1e-9, abs=1e-11)


def test_packed_rows_and_recomputed_activations_give_the_same(directory):
    weights, _ = learned(directory, micro_batch_tokens=10_000)
    for how in ({"packed": True, "micro_batch_tokens": 40}, {"recompute": True}):
        torch.testing.assert_close(learned(directory, **how)[0], weights, rtol=0, atol=1e-11)


def test_with_an_adapter_it_is_the_same_however_the_update_is_cut(directory):
    """It reaches the adapter through the hidden states; the routers are frozen."""
    lora = Lora(2, 4.0, ("all-linear",), str(directory), 0)
    weights, metrics = learned(directory, micro_batch_tokens=10_000, lora=lora)
    assert metrics["aux_loss"] > 0
    for how in ({"micro_batch_tokens": 1}, {"share": "always", "micro_batch_tokens": 60}):
        torch.testing.assert_close(learned(directory, lora=lora, **how)[0], weights, rtol=0, atol=1e-11)
    without, _ = learned(directory, lora=lora, coefficient=0.0)
    assert float((without - weights).abs().max()) > 1e-6


def test_without_a_coefficient_nothing_changes(directory):
    with_it, without = (learned(directory, coefficient=c)[0] for c in (COEFFICIENT, 0.0))
    assert float((with_it - without).abs().max()) > 1e-4
    assert "aux_loss" not in learned(directory, coefficient=0.0)[1]


def own_gradient(model, samples):
    """The gradient of transformers' own auxiliary loss on all rows of an update at once, padding masked."""
    width = max(sample.num_tokens for sample in samples)
    ids, mask = torch.zeros(len(samples), width, dtype=torch.int64), torch.zeros(len(samples), width)
    for row, sample in enumerate(samples):
        ids[row, : sample.num_tokens] = torch.tensor([*sample.prompt_ids, *sample.completion_ids.tolist()])
        mask[row, : sample.num_tokens] = 1
    logits = model.model(input_ids=ids, use_cache=False, output_router_logits=True).router_logits
    loss = load_balancing_loss_func(logits, EXPERTS, TOP_K, mask.to(logits[0].dtype))
    parameters = [p for n, p in model.named_parameters() if "lm_head" not in n]
    return loss, torch.autograd.grad(COEFFICIENT * loss, parameters, allow_unused=True), parameters


@pytest.mark.parametrize("share", ["never", "always"])
def test_value_and_gradient_are_transformers_own(directory, share):
    """All advantages are 0, so the router's term is the whole loss, and no row is dropped."""
    loss = build("dapo")
    groups = [dataclasses.replace(group, advantages=torch.zeros(4).double()) for group in groups_of()]
    update = plan_step(groups, loss)[0]
    policy = load(directory)
    with policy.computing():
        value, wanted, parameters = own_gradient(policy.model, update.samples)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.0)
    how = Learning(30, 60, 0, share=share, router=RouterLoss(COEFFICIENT, TOP_K))
    metrics, _ = optimize(policy, update, loss, optimizer, how)
    # its own counts and sums are in float32
    assert metrics["aux_loss"].value == pytest.approx(float(value.detach()), rel=1e-6)
    assert metrics["loss"].value == pytest.approx(COEFFICIENT * float(value.detach()), rel=1e-6)
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in wanted if gradient is not None)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-8)


def test_a_shared_prompt_counts_once_for_each_completion(directory):
    """Every token of every row counts, its last one too, and padding doesn't."""
    samples = plan_step(groups_of(), build("dapo"))[0].samples
    want = sum(sample.num_tokens for sample in samples)
    for layout in ("padded", "packed", "shared"):
        assert int(collate(samples, layout, CPU, whole=True).copies.sum()) == want
        assert int(collate([], layout, CPU, whole=True).copies.sum()) == 0
    last = sum(len(sample.completion_ids) > 0 for sample in samples)
    assert int(collate(samples, "shared", CPU).copies.sum()) == want - last


def test_shares_add_up_to_the_formula():
    """E · Σ f_e · P_e, by hand: three tokens of one layer, the last a prompt's that two rows share."""
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]).double()
    logits, copies = probabilities.log(), torch.tensor([1, 1, 2])
    use = expert_use([logits], copies, top_k=1)
    assert use.chosen.tolist() == [1, 1, 2]
    assert int(use.pairs) == 4
    balance = Balance.of(RouterLoss(1.0, 1), use)
    mean = (probabilities * copies[:, None]).sum(0) / 4
    want = 3 * (torch.tensor([0.25, 0.25, 0.5]) * mean).sum()
    first, second = balance.share([logits[:1]], copies[:1]), balance.share([logits[1:]], copies[1:])
    assert float(first + second) == pytest.approx(float(want), rel=1e-6)


# --------------------------------------------------------------------------- which coefficient


def test_the_default_is_the_models_own_where_it_outputs_router_logits(directory, tmp_path, capsys):
    assert find_router_loss(load(directory), None) is None  # its config doesn't output them
    assert "--router_aux_loss_coef 0.001 adds it" in capsys.readouterr().out
    asks = save(
        tmp_path / "asks",
        "Qwen3MoeConfig",
        MOE | {"output_router_logits": True, "router_aux_loss_coef": 0.02},
    )
    assert find_router_loss(load(asks), None) == RouterLoss(0.02, TOP_K)
    assert find_router_loss(load(asks), 0.0) is None
    assert find_router_loss(load(asks), 0.1) == RouterLoss(0.1, TOP_K)


def test_a_model_without_such_a_loss_refuses_a_coefficient(tmp_path):
    dense = make_model_dir(tmp_path / "dense")
    assert find_router_loss(load(dense), None) is None
    with pytest.raises(ValueError, match=r"--router_aux_loss_coef 0.1: \w+ForCausalLM has no router aux"):
        find_router_loss(load(dense), 0.1)


def test_a_model_that_computes_it_in_another_way_is_refused(directory, monkeypatch):
    policy = load(directory)
    monkeypatch.setattr(policy.model, "num_experts_per_tok", 1)  # the model's own then counts one expert
    real = expert_use
    monkeypatch.setattr("grpokit.policy.probes.expert_use", lambda *args: real(*args[:2], 2))
    with pytest.raises(ValueError, match=r"in another way \(it differs by .*set 0"):
        find_router_loss(policy, 0.1)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_coefficient_that_makes_no_sense_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"--router_aux_loss_coef .*: must be 0 or more"):
        check_train_config(tiny_config(tmp_path, router_aux_loss_coef=value))


JAMBA = {name: size for name, size in SIZES.items() if name != "head_dim"} | {
    "num_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
    "use_mamba_kernels": False,
}


def test_routers_that_are_plain_layers_get_no_adapter(tmp_path, caplog):
    """transformers finds Jamba's router logits by the layer's name: an adapter's own layers would be taken for routers."""
    path = save(tmp_path / "model", "JambaConfig", JAMBA)
    lora = Lora(EXPERTS, 4.0, ("all-linear",), str(path), 0)
    policy = load(path, "float32", lora=lora)
    assert "router" in caplog.text
    assert not any("router" in place for place in adapted_layers(policy.model))
    assert find_router_loss(policy, 0.1) == RouterLoss(0.1, TOP_K)
    adapted = load(path, "float32", lora=dataclasses.replace(lora, target_modules=("router", "q_proj")))
    with pytest.raises(ValueError, match="the adapter changes the routers; name other --lora_target_modules"):
        find_router_loss(adapted, 0.1)


def test_probabilities_in_the_place_of_logits_are_refused(directory, monkeypatch):
    policy = load(directory)
    real = run_backbone

    def softened(*args, **inputs):
        passed = real(*args, **inputs)
        return dataclasses.replace(passed, router_logits=tuple(x.softmax(-1) for x in passed.router_logits))

    monkeypatch.setattr("grpokit.policy.probes.run_backbone", softened)
    with pytest.raises(ValueError, match="gives probabilities in the place of router logits"):
        find_router_loss(policy, 0.1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_in_any_dtype_it_is_the_models_own(directory, dtype):
    assert find_router_loss(load(directory, dtype), 0.1) == RouterLoss(0.1, TOP_K)


# --------------------------------------------------------------------------- a run


def test_a_run_logs_it_and_resumes(directory, tmp_path):
    def run(output, steps):
        trainer = GRPOTrainer(
            model=str(directory),
            reward_funcs=lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids],
            train_dataset=[{"prompt": text} for text in ("3", "52", "716")],
            output_dir=str(tmp_path / output),
            router_aux_loss_coef=0.1,
            prompts_per_step=2,
            num_generations=3,
            max_completion_length=4,
            learning_rate=1e-2,
            max_steps=steps,
            save_steps=1,
        )
        trainer.train(resume_from_checkpoint=True)
        return (tmp_path / output / "final" / "model.safetensors").read_bytes()

    whole = run("whole", 2)
    for row in rows(tmp_path / "whole", "metrics.jsonl"):
        assert row["loss/router"] == pytest.approx(0.1 * row["aux_loss"])
        assert row["loss/router"] > 0
        assert row["loss"] == pytest.approx(row["loss/policy"] + row["loss/router"])
    run("halves", 1)
    assert run("halves", 2) == whole


@pytest.mark.slow
def test_ranks_train_as_one_process(tmp_path):
    """Also ranks that have no rows: two prompts and two updates, in the smallest micro-batches."""
    make_model_dir(tmp_path / "model")  # for its tokenizer
    save(tmp_path / "model", "Qwen3MoeConfig", MOE)

    def run(ranks):
        output = tmp_path / f"ranks-{ranks}"
        config = tiny_config(
            tmp_path,
            prompts_per_step=2,
            updates_per_step=2,
            micro_batch_tokens=10_000 if ranks == 1 else 20,
            router_aux_loss_coef=COEFFICIENT,
            output_dir=str(output),
        )
        (tmp_path / "run.yaml").write_text(to_yaml(config))
        done = forked.run("grpokit", "train", "--config", tmp_path / "run.yaml", ranks=ranks, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        return load_file(output / "final" / "model.safetensors"), rows(output, "metrics.jsonl")

    weights, metrics = run(1)
    for ranks in (2, 3):
        theirs, logged = run(ranks)
        for name, tensor in weights.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-10)
        for ours, row in zip(metrics, logged, strict=True):
            assert row["aux_loss"] == pytest.approx(ours["aux_loss"], rel=1e-9)


def test_a_dump_replays_with_it(directory, tmp_path):
    """With the bad weight set to 0, the loss of the replayed dump is the router's term alone."""
    policy, loss = load(directory), build("dapo")
    update = plan_step(groups_of(), loss)[0]
    bad = (dataclasses.replace(update.samples[0], weight=float("nan")), *update.samples[1:])
    config = TrainConfig(model=str(directory))

    def dump(offender):
        write_offender(tmp_path / "dump.safetensors", offender, config, 0, 0)
        return tmp_path / "dump.safetensors"

    how = Learning(share="always", router=RouterLoss(COEFFICIENT, TOP_K), dump=dump)
    with pytest.raises(NonFiniteError):
        optimize(
            policy, dataclasses.replace(update, samples=bad), loss, torch.optim.SGD(policy.parameters()), how
        )
    dumped = read_offender(tmp_path / "dump.safetensors")
    assert dumped.whole.balance is not None
    assert dumped.whole.balance.coefficient == COEFFICIENT
    samples = tuple(dataclasses.replace(sample, weight=0.0) for sample in dumped.samples)
    again = run_again(policy, loss, dataclasses.replace(dumped, samples=samples))
    assert again.loss > 0.1  # the router's term alone
