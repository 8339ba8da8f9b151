"""A real vLLM server on this machine, a task of GSM8K's shape, and runs that sample through it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from grpokit.config.options import TrainConfig
from helpers.launch import ENVIRONMENT
from helpers.places import REWARDS, ROOT

PYTHON = os.environ.get("GRPOKIT_VLLM_PYTHON", "")


def needs_vllm(test):
    """Mark a test that `make test-vllm` runs, and nothing else can."""
    missing = pytest.mark.skipif(
        not PYTHON, reason="NOT TESTED: vLLM (`make test-vllm` has an environment for it)"
    )
    return pytest.mark.vllm(missing(test))


class RunningServer:
    """A vLLM server on this machine, that can be killed and started again."""

    def __init__(self, model: Path, log: Path, *flags: str, **environment: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log, self.flags, self.environment = model, log, flags, environment
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        flags = "--logprobs-mode processed_logprobs --dtype float32 --max-model-len 256 --enforce-eager"
        command = [PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            **self.environment,
        }
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port), *flags.split(), *self.flags],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()[-3000:]
                time.sleep(0.5)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def make_task(directory: Path) -> Path:
    """A chat model with a BPE tokenizer, untied (model) and tied (tied), and 200 rows of GSM8K's columns."""
    script = [sys.executable, str(ROOT / "examples" / "make_tiny_chat_model.py"), "--steps", "60"]
    done = subprocess.run(
        [*script, "--output_dir", str(directory)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (directory / "model").rename(directory / "tied")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory / "tied")
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = False
    model.save_pretrained(directory / "model")
    AutoTokenizer.from_pretrained(directory / "tied").save_pretrained(directory / "model")
    lines = (directory / "train.jsonl").read_text().splitlines(keepends=True)
    (directory / "train.jsonl").write_text("".join(lines[:200]))
    return directory


def make_judge(task: Path, directory: Path) -> Path:
    """A model with the task's tokenizer that answers everything with "Score: 7": each token decides the next one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task / "model")
    model = AutoModelForCausalLM.from_pretrained(task / "model")
    (end,) = tokenizer.encode("<|im_end|>")
    says = [tokenizer.encode("\n")[-1], *tokenizer.encode("Score: 7"), end]
    assert len(set(says)) == len(says)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.zero_()  # a layer adds nothing to the embedding
        model.lm_head.weight.zero_()
        for token, following in itertools.pairwise(says):
            model.lm_head.weight[following] = 100 * model.model.embed_tokens.weight[token]
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def config_for(task: Path, output: Path, url: str, **changes) -> TrainConfig:
    settings = {
        "model": str(task / "model"),
        "dataset": str(task / "train.jsonl"),
        "reward_funcs": ("accuracy",),
        "output_dir": str(output),
        "sampler": "vllm",
        "vllm_url": url,
        "prompts_per_step": 4,
        "num_generations": 4,
        "max_completion_length": 24,
        "temperature": 0.7,
        "learning_rate": 1e-3,
        "correction_mode": "truncate",
        "max_steps": 10,
        "num_threads": 1,
    }
    return TrainConfig(**(settings | changes))


def train(config: TrainConfig, *, slowly: bool = False) -> subprocess.Popen:
    """The real command. `slowly`: with a reward that takes a moment, so that there is something to disturb."""
    reward = (f"{REWARDS}:slow_digits_in_order",) if slowly else config.reward_funcs
    from dataclasses import replace

    from grpokit.config.yaml import to_yaml

    file = Path(config.output_dir + ".yaml")
    file.write_text(to_yaml(replace(config, reward_funcs=reward)))
    return subprocess.Popen(
        [sys.executable, "-m", "grpokit", "train", "--config", str(file)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
