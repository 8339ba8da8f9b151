"""A teacher behind the URL of a vLLM server: it tells the log-probs of tokens that it is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import httpx
import torch
from torch import Tensor

from ..common.loops import run_anywhere
from ..common.text import one_line
from ..types import Sample

CONNECTIONS = 64  # concurrent requests; the server batches them as it likes
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries
HELLO = 30.0  # seconds to wait for an answer that needs no work
# Text of several scripts: two tokenizers that cut it alike are taken for the same.
PROBE = "The answer is 12,345.67: f(x) = x² + 1\n\tdéjà vu — 强化学习 — Привет — 🙂 <|im_start|>"


class TeacherServer:
    """A vLLM server whose model teaches. It has the log-probs of sampled tokens at temperature 1.

    Args:
        url: the server's address.
        timeout: seconds without any success after which the run fails.
    """

    def __init__(self, url: str, timeout: float) -> None:
        """Raises ValueError where no vLLM server answers at `url`."""
        self.alive = time.monotonic()  # when the server last answered
        self.url, self.timeout = url.rstrip("/").removesuffix("/v1"), timeout
        try:
            self.card = httpx.get(f"{self.url}/v1/models", timeout=min(timeout, HELLO)).json()["data"][0]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"--teacher {url}: no vLLM server answers there ({one_line(error) or type(error).__name__}); start one with: "
                "vllm serve MODEL --host 127.0.0.1"
            ) from error

    def check(self, tokenizer: Any, longest: int) -> None:
        """Raises ValueError where the server cuts text into other tokens, or its context is too short.

        Args:
            tokenizer: the run's tokenizer.
            longest: the longest row of the run, in tokens.
        """
        room = self.card.get("max_model_len")
        if room is not None and longest >= room:  # one token is sampled behind it
            raise ValueError(
                f"--teacher {self.url}: has a context of {room} tokens. The run needs {longest + 1}: its longest prompt with "
                f"completion, and one token that the server must sample; start it with --max-model-len {longest + 1}"
            )
        asked = {"model": self.card["id"], "prompt": PROBE, "add_special_tokens": False}
        try:
            answer = httpx.post(f"{self.url}/tokenize", json=asked, timeout=HELLO)
            theirs = answer.json()["tokens"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--teacher {self.url}: does not say how it cuts text into tokens (/tokenize: {one_line(error)}); it must be a "
                "vLLM server"
            ) from error
        if theirs != tokenizer(PROBE, add_special_tokens=False)["input_ids"]:
            raise ValueError(
                f"--teacher {self.url}: its tokenizer is another one than --model's, so the same token ids are another text to "
                "it; use a teacher with the same tokenizer"
            )

    def score(self, samples: Sequence[Sample]) -> dict[int, Tensor]:
        """Scores samples: sample index → [T_i] log-probs of the trainable tokens, float32.

        Raises:
            ValueError: the server refuses a request, answers without log-probs, or doesn't answer for `timeout` seconds.
        """
        self.alive = time.monotonic()
        return dict(run_anywhere(self._score_all(samples))) if samples else {}

    async def _score_all(self, samples: Sequence[Sample]) -> list[tuple[int, Tensor]]:
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with httpx.AsyncClient(timeout=self.timeout, limits=limits) as client:
            return await asyncio.gather(*(self._score(client, sample) for sample in samples))

    async def _score(self, client: httpx.AsyncClient, sample: Sample) -> tuple[int, Tensor]:
        ids = [*sample.prompt_ids, *sample.completion_ids.tolist()]
        asked = {"model": self.card["id"], "prompt": ids, "max_tokens": 1, "temperature": 1.0}
        answer = await self._ask(client, asked | {"prompt_logprobs": 1})
        try:
            told = answer["choices"][0]["prompt_logprobs"]
            places = torch.nonzero(sample.trainable).flatten() + len(sample.prompt_ids)
            logps = [float(told[place][str(ids[place])]["logprob"]) for place in places.tolist()]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"--teacher {self.url}: its answer has no log-prob of each token (prompt_logprobs: {one_line(error)})"
            ) from error
        return sample.index, torch.tensor(logps, dtype=torch.float32)

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
        """Sends a request again and again while the server is in trouble."""
        pause = FIRST_PAUSE
        while True:
            try:
                answer = await client.post(f"{self.url}/v1/completions", json=body)
                if 400 <= answer.status_code < 500 and answer.status_code not in (408, 429):
                    raise ValueError(f"--teacher {self.url}: refused: {one_line(answer.text, 300)}")
                answer.raise_for_status()
                found = answer.json()
            except httpx.HTTPError as error:
                if time.monotonic() - self.alive + pause > self.timeout:
                    raise ValueError(
                        f"--vllm_timeout {self.timeout:g}: the teacher at {self.url} did not answer in that time (the last "
                        f"try: {one_line(error) or type(error).__name__}); is the server still running?"
                    ) from error
            else:
                self.alive = time.monotonic()
                return found
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
