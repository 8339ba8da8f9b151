"""A running vLLM server as an engine: requests side by side, tried again while the server comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx

from . import SamplingStopped
from .vllm import Completion, Request

T = TypeVar("T")

START = "start one with: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --host 127.0.0.1 --logprobs-mode processed_logprobs"
CONNECTIONS = 256  # requests under way at once; the server batches them as it likes
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries
LOOK_EVERY = 0.2  # seconds between two looks at `stop`
RESTARTS = 5  # of the server that one batch survives
HELLO = 30.0  # seconds for an answer that needs no work


class Unreachable(Exception):
    """No answer, or one that says the server is in trouble: worth another try."""


class Server:
    """The engine behind `--sampler vllm`. It is given up after `timeout` seconds in which it serves nothing."""

    def __init__(self, url: str, timeout: float) -> None:
        """Raises ValueError where no vLLM server answers, or one that can't be given weights."""
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.timeout = timeout
        self.loaded: tuple[Path, str] | None = None  # directory and tag of the weights that it should have
        self.model = self._run(self._introduce)

    def load(self, directory: Path, tag: str, stop: Callable[[], bool]) -> None:
        """See `Engine.load`. Raises ValueError where the server cannot read the directory."""
        self.expect(directory, tag)
        self._run(lambda client: _unless(stop, self._weights(client)))

    def expect(self, directory: Path, tag: str) -> None:
        """See `Engine.expect`."""
        self.loaded = directory, tag

    def complete(self, requests: Sequence[Request], stop: Callable[[], bool]) -> list[Completion]:
        """See `Engine.complete`. Raises ValueError naming the request that the server refuses or doesn't answer."""

        async def all_of_them(client: httpx.AsyncClient) -> list[Completion]:
            for _ in range(RESTARTS + 1):
                before = await self._weights(client)
                found = await self._batch(client, requests)
                # What came between a restart and its discovery, by whichever rank, is of other weights: ask again, by
                # the same seeds.
                if await self._weights(client) == before:
                    return found
            raise ValueError(
                f"--vllm_url {self.url}: the server was started anew {RESTARTS} times in one batch"
            )

        return self._run(lambda client: _unless(stop, all_of_them(client)))

    # ------------------------------------------------------------------- requests

    async def _batch(self, client: httpx.AsyncClient, requests: Sequence[Request]) -> list[Completion]:
        places = asyncio.Semaphore(CONNECTIONS)

        async def one(request: Request) -> Completion:
            async with places:
                return await self._persist(request.name, lambda: self._complete(client, request))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(request)) for request in requests]
        return [task.result() for task in tasks]

    async def _complete(self, client: httpx.AsyncClient, request: Request) -> Completion:
        body = {"model": self.model, "prompt": list(request.prompt_ids), "return_token_ids": True}
        answer = await self._send(client, "POST", "/v1/completions", body | request.parameters())
        try:
            (choice,) = answer["choices"]
            ids, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            # Anything else was given up by the server: it was paused, say.
            if choice["finish_reason"] not in ("stop", "length"):
                raise Unreachable(f"finish_reason {choice['finish_reason']}")
            if len(ids) != len(logps) or not ids:
                raise ValueError(f"{len(ids)} tokens and {len(logps)} log-probs")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"--vllm_url {self.url}: its answer for {request.name} is not that of a vLLM server: {error!r}"
            ) from error
        return Completion([int(i) for i in ids], [float(x) for x in logps], choice["finish_reason"])

    # ------------------------------------------------------------------- weights

    async def _introduce(self, client: httpx.AsyncClient) -> str:
        try:
            async with asyncio.timeout(min(self.timeout, HELLO)):
                models = await self._send(client, "GET", "/v1/models")
                name = models["data"][0]["id"]
                await self._send(client, "GET", "/weight_info")
        except (Unreachable, TimeoutError) as error:
            why = str(error) or "it accepts, and says nothing"
            raise ValueError(
                f"--vllm_url {self.url}: no vLLM server answers there ({why}); {START}"
            ) from error
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"--vllm_url {self.url}: what answers there is no vLLM server; {START}"
            ) from error
        return name

    async def _weights(self, client: httpx.AsyncClient) -> str:
        """The name of the load that the server's weights come from; they are loaded first where it has others."""
        return await self._persist("the weights", lambda: self._ensure_weights(client))

    async def _ensure_weights(self, client: httpx.AsyncClient) -> str:
        assert self.loaded is not None
        directory, tag = self.loaded
        has = str((await self._send(client, "GET", "/weight_info")).get("weight_version"))
        if has.startswith(tag + "-"):
            return has
        path = {"weights_path": str(directory.resolve())}
        await self._send(client, "POST", "/pause?mode=wait")
        try:
            await self._send(client, "POST", "/collective_rpc", {"method": "reload_weights", "kwargs": path})
            await self._send(client, "POST", "/reset_prefix_cache")
        except BaseException:
            with contextlib.suppress(Unreachable, TimeoutError):  # the first error is the one to tell
                async with asyncio.timeout(HELLO):
                    await self._send(client, "POST", "/resume")
            raise
        await self._send(client, "POST", "/resume")
        # Last: a load that broke off anywhere has no name, and is done again. Each load has its own, so that one after
        # a restart shows, even if another rank was first to do it.
        name = f"{tag}-{uuid.uuid4().hex[:8]}"
        await self._send(client, "POST", "/update_weight_version", {"new_version": name})
        return name

    # ------------------------------------------------------------------- transport

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
        """One try. Raises Unreachable, or ValueError where the server says that the request is wrong."""
        try:
            answer = await client.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        except httpx.InvalidURL as error:
            raise ValueError(f"--vllm_url {self.url}: {error}") from error
        if answer.status_code == 404:
            raise ValueError(f"--vllm_url {self.url}: has no {path.partition('?')[0]}; {START}")
        if answer.status_code >= 500:
            raise Unreachable(f"status {answer.status_code}: {answer.text[:300]}")
        if answer.status_code >= 400:
            raise ValueError(f"--vllm_url {self.url}: {path} refused: {answer.text[:500]}")
        try:
            return answer.json() if answer.content else {}
        except ValueError as error:
            raise Unreachable(f"an answer that is no JSON: {answer.text[:100]!r}") from error

    async def _persist(self, name: str, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Until it succeeds, with growing pauses.

        Raises ValueError naming the request where `timeout` seconds pass in which nothing at all succeeds: a long
        batch on a server that works takes as long as it takes.
        """
        pause = FIRST_PAUSE
        while True:
            task = asyncio.ensure_future(attempt())
            try:
                while not task.done():
                    if self._left() <= 0:
                        raise TimeoutError("no answer")
                    await asyncio.wait([task], timeout=self._left())
                found = task.result()
            except (Unreachable, TimeoutError) as error:
                if self._left() <= pause:
                    raise ValueError(
                        f"--vllm_timeout {self.timeout:g}: {self.url} did not serve {name} in that time (the last "
                        f"try: {error}); is the server still running?"
                    ) from error
            else:
                self.alive = time.monotonic()
                return found
            finally:
                task.cancel()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _left(self) -> float:
        return self.alive + self.timeout - time.monotonic()

    def _run(self, work: Callable[[httpx.AsyncClient], Coroutine[Any, Any, T]]) -> T:
        self.alive = time.monotonic()  # when the server last served anything

        async def inside() -> T:
            limits = httpx.Limits(max_connections=CONNECTIONS)
            async with httpx.AsyncClient(timeout=httpx.Timeout(None), limits=limits) as client:
                return await work(client)

        try:
            return asyncio.run(inside())
        except* (ValueError, SamplingStopped) as several:
            raise _first(several) from several


async def _unless(stop: Callable[[], bool], work: Coroutine[Any, Any, T]) -> T:
    """`work`'s result. Raises SamplingStopped once `stop()`, and gives the work up."""
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.wait([task], timeout=LOOK_EVERY)
        if stop() and not task.done():
            task.cancel()
            raise SamplingStopped("stopped while the server was sampling")
    return task.result()


def _first(several: BaseExceptionGroup) -> BaseException:
    error: BaseException = several
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
