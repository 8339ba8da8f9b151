"""vLLM with a LoRA adapter of its own, with stop strings, and in the trainer's process; engines are real, on a CPU."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from grpokit.commands.cli import main
from grpokit.config.yaml import to_yaml
from helpers.agents import WORLDS
from helpers.launch import ENVIRONMENT, rows
from helpers.places import REWARDS, ROOT
from helpers.running import start
from helpers.running import train as loop
from helpers.tiny import tiny_config
from helpers.vllm_parts import PYTHON, RunningServer, config_for, make_task, metrics_of, needs_vllm, train

EPISODES = {
    "environment": (f"{WORLDS}:Echo",),
    "max_turns": 3,
    "max_turn_length": 24,
    "max_completion_length": 100,
}
LORA = {"lora_r": 8, "learning_rate": 1e-2}
DIGITS = f"{REWARDS}:terminates"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """See `make_task`."""
    return make_task(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def server(task):
    """One that takes adapters."""
    flags = ("--enable-lora", "--max-lora-rank", "8")
    running = RunningServer(
        task / "model", task / "server.log", *flags, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True"
    )
    try:
        running.wait()
        yield running
    finally:
        running.kill()


def gaps_of(run: Path) -> dict[int, float]:
    return {r["step"]: r["sampler/logp_diff_max"] for r in metrics_of(run) if "sampler/logp_diff_max" in r}


@needs_vllm
def test_an_adapter_is_given_to_the_server_again_after_a_restart(task, server, tmp_path):
    run = tmp_path / "run"
    config = config_for(task, run, server.url, **LORA, vllm_sync="adapter", max_steps=8, lora_save="adapter")
    process = train(config, slowly=True)
    deadline = time.monotonic() + 300
    while not ((run / "metrics.jsonl").exists() and len(metrics_of(run)) >= 3):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.kill()
    server.start()
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert len(metrics_of(run)) == 8
    gaps = gaps_of(run)
    assert max(gaps.values()) < 1e-3
    assert max(gaps) > 4
    assert {path.name for path in (run / "vllm").glob("*.safetensors")} == {"adapter_model.safetensors"}
    server.wait()


@needs_vllm
def test_the_servers_own_model_is_not_what_answers(task, server, tmp_path):
    """That the gap of the test before is small would mean nothing if the adapter did nothing."""
    run = start(config_for(task, tmp_path / "run", server.url, **LORA, vllm_sync="adapter", max_steps=3))
    loop(run)
    weights = run.rollouts.sampler.weights
    weights.max_gap = 1e-3
    weights.probe(run.rollouts.sampler.probe_ids)
    weights.engine.only_adapter, weights.engine.model = False, weights.engine.first_model
    with pytest.raises(ValueError, match=r"--vllm_max_gap 0.001: after loading the weights"):
        weights.probe(run.rollouts.sampler.probe_ids)
    run.close()


@needs_vllm
def test_an_adapter_reaches_the_server_within_whole_files_too(task, server, tmp_path):
    """Last of those that use the server: it has other weights than its launch directory's from here on."""
    config = config_for(task, tmp_path / "run", server.url, **LORA, max_steps=3, stop=("1", " +"))
    run = start(config)
    loop(run)
    assert max(gaps_of(tmp_path / "run").values(), default=0) < 1e-3
    groups = run.rollouts.sampler.sample(run.prompts.take(0, 4), 8)
    run.close()
    ended = set()
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        ids = rollout.completion_ids.tolist()
        before, after = (run.tokenizer.decode(part) for part in (ids[:-1], ids))
        assert not any(string in before for string in config.stop)
        found = [string for string in config.stop if string in after]
        eos = ids[-1] in run.rollouts.sampler.weights.eos_ids
        assert (rollout.finish_reason == "stop") == bool(found or eos)
        ended |= set(found)
    assert ended


@needs_vllm
def test_a_server_that_takes_no_adapters(task, tmp_path, capsys):
    running = RunningServer(task / "model", tmp_path / "server.log")
    try:
        running.wait()
        config = config_for(task, tmp_path / "run", running.url, **LORA, vllm_sync="adapter")
        (tmp_path / "run.yaml").write_text(to_yaml(config))
        assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert "has no /v1/load_lora_adapter; start one with:" in said
        assert "--enable-lora" in said
    finally:
        running.kill()


def train_inside(config, *, ranks: int = 1) -> subprocess.CompletedProcess:
    """The command in vLLM's environment, where grpokit is installed too."""
    file = Path(config.output_dir + ".yaml")
    file.write_text(to_yaml(replace(config, vllm_mode="colocate")))
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
        "PYTHONPATH": str(ROOT / "src"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    command = [PYTHON, *launcher, "-m", "grpokit", "train", "--config", str(file)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@needs_vllm
@pytest.mark.parametrize("lora", [EPISODES, {**LORA, "stop": ("#",)}], ids=["episodes", "lora"])
def test_an_engine_in_the_trainers_process(task, tmp_path, lora):
    streams = {"stream_rewards": lora is EPISODES}
    settings = {"reward_funcs": (DIGITS,), "max_steps": 4, "save_steps": 2} | lora | streams
    done = train_inside(config_for(task, tmp_path / "run", "127.0.0.1:9", **settings))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert [row["step"] for row in metrics_of(tmp_path / "run")] == [1, 2, 3, 4]
    gaps = gaps_of(tmp_path / "run")
    assert gaps
    assert max(gaps.values()) < 1e-3
    assert not (tmp_path / "run" / "vllm").exists()
    if lora is EPISODES:
        assert any(row["turns/max"] > 1 for row in metrics_of(tmp_path / "run"))
        assert all(row["time/reward_streamed"] > 0 for row in metrics_of(tmp_path / "run"))


@needs_vllm
def test_each_rank_has_an_engine(task, tmp_path):
    settings = {"reward_funcs": (DIGITS,), "max_steps": 3}
    for ranks in (1, 2):
        done = train_inside(
            config_for(task, tmp_path / f"run-{ranks}", "127.0.0.1:9", **settings), ranks=ranks
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    one, two = (
        [row["completions"] for row in rows(tmp_path / f"run-{ranks}", "completions.jsonl")]
        for ranks in (1, 2)
    )
    assert one == two


def test_without_vllm_it_says_what_to_do(tmp_path, capsys):
    config = tiny_config(tmp_path, sampler="vllm", vllm_mode="colocate", dtype="float32")
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--vllm_mode colocate: vLLM cannot be imported here" in said
    assert "--vllm_mode server" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vllm_mode": "colocate", "sampler": "transformers"},
            "--vllm_mode colocate: is not used with --sampler",
        ),
        ({"vllm_mode": "colocate", "async_depth": 1}, "--async_depth 1: an engine in this process"),
        ({"vllm_mode": "colocate", "dtype": "float64"}, "--dtype float64: vLLM does not compute in it"),
        ({"vllm_gpu_memory_utilization": 1.5}, "--vllm_gpu_memory_utilization 1.5: must be above 0"),
        ({"vllm_sync": "adapter"}, "--vllm_sync adapter: there is no adapter with --lora_r 0"),
        ({"vllm_sync": "nccl", "vllm_mode": "colocate"}, "--vllm_sync nccl: is for a server"),
        (
            {"vllm_sync": "adapter", "lora_r": 4, "sampler": "transformers"},
            "--vllm_sync adapter: is for a server",
        ),
    ],
)
def test_vllm_flags_that_cannot_work_are_refused(tmp_path, changes, message):
    from grpokit.config.checks import check_train_config

    with pytest.raises(ValueError, match=message):
        check_train_config(tiny_config(tmp_path, **({"sampler": "vllm", "dtype": "float32"} | changes)))
