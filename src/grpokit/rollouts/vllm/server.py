"""A running vLLM server as an engine: concurrent requests, retried while the server comes back.

The policy's weights are written as a Hugging Face directory that the server loads. The server stores their digest as its
weight version. A restarted server reports another version, so it loads the weights again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from ...common.loops import run_anywhere
from ...parallel import World
from ...policy.export import engine_format, save_model
from ...policy.policy import Policy
from .engine import Completion, Request

T = TypeVar("T")

START = "start one with: VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --host 127.0.0.1 --logprobs-mode processed_logprobs"
START_FOR_ADAPTERS = (
    f"{START} --enable-lora --max-lora-rank R, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True before it"
)
CONNECTIONS = 256  # concurrent requests; the server batches them as it likes
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries
RESTARTS = 5  # restarts of the server that one request survives
# Paths that answer with a sentence instead of JSON.
SAYS_SO = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
HELLO = 30.0  # seconds to wait for an answer that needs no work


class Unreachable(Exception):
    """No answer, or one that says the server is in trouble. A retry may help."""


class ServerError(Unreachable):
    """The server failed on the request: status 500."""


class NotFound(ValueError):
    """The server has no such path or model."""


class Server:
    """The engine of `--sampler vllm`.

    Args:
        url: the server's address.
        timeout: seconds without any success after which the run fails.
        directory: where the weights are written for the server.
        only_adapter: whether to send only the policy's LoRA adapter, for the base model that the server was started with.
    """

    def __init__(self, url: str, timeout: float, directory: Path, only_adapter: bool = False) -> None:
        """Raises ValueError if no vLLM server answers at `url`, or if the server cannot load weights."""
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        self.timeout, self.directory, self.only_adapter = timeout, directory, only_adapter
        self.tag = ""  # names the weights that the server should have
        self.loading = asyncio.Lock()  # the first task that misses the adapter loads it
        self.model = self.first_model = self._run(self._introduce)

    def take(self, policy: Policy, tokenizer: Any, world: World) -> None:
        """See `Engine.take`. Raises ValueError where the server cannot read the directory."""
        tag = ""
        with world.together():
            save_model(self.directory, policy, tokenizer, engine_format(policy, self.only_adapter), world)
            tag = digest(self.directory) if world.is_main else ""
        self.tag = world.from_main(tag)
        with world.together():
            if world.is_main:
                self._run(self._weights)

    @contextmanager
    def asking(self) -> Iterator[ServerAsking]:
        """See `Engine.asking`."""
        asking = ServerAsking(self)
        try:
            yield asking
        finally:
            asking.end()

    # ------------------------------------------------------------------- requests

    async def answer(self, client: httpx.AsyncClient, request: Request) -> Completion:
        """Answers one request. Raises ValueError naming it where the server refuses it or does not answer."""
        for _ in range(RESTARTS + 1):
            before = await self._held(client)
            found = await self._persist(request.name, lambda: self._complete(client, request))
            # An answer between a restart and its discovery (by any rank) comes from other weights: ask again, with the
            # same seed.
            if await self._held(client) == before:
                return found
        raise ValueError(
            f"--vllm_url {self.url}: the server was restarted {RESTARTS} times during one request"
        )

    async def _held(self, client: httpx.AsyncClient) -> str:
        """Returns the server's weight version, asked for after this call began. Concurrent callers share one request."""

        async def ask() -> str:
            async with self.loading:
                self.next_look = None  # later callers need a new request
                return await self._weights(client)

        if self.next_look is None:
            self.next_look = asyncio.ensure_future(ask())
        return await asyncio.shield(self.next_look)

    async def _complete(self, client: httpx.AsyncClient, request: Request) -> Completion:
        body = {"model": self.model, "prompt": list(request.prompt_ids), "return_token_ids": True}
        try:
            answer = await self._send(client, "POST", "/v1/completions", body | request.parameters())
        except NotFound as error:
            if self.model == self.first_model:
                raise
            # A restarted server has no adapters. Its new adapter gets a new name, so the whole batch is requested again.
            async with self.loading:
                await self._ensure_weights(client)
            raise Unreachable("it has lost the adapter") from error
        try:
            (choice,) = answer["choices"]
            ids, logps = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            # With any other reason the server gave up the request, for example because it was paused.
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
            why = str(error) or "it accepts connections but does not answer"
            raise ValueError(
                f"--vllm_url {self.url}: no vLLM server answers there ({why}); {START}"
            ) from error
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"--vllm_url {self.url}: the server there is not vLLM; {START}") from error
        return name

    async def _weights(self, client: httpx.AsyncClient) -> str:
        """Returns the server's weight version. Loads the policy's weights first if they are not there."""
        return await self._persist("the weights", lambda: self._ensure_weights(client))

    async def _ensure_weights(self, client: httpx.AsyncClient) -> str:
        has = str((await self._send(client, "GET", "/weight_info")).get("weight_version"))
        if not has.startswith(self.tag + "-"):
            # Each load has a unique name, so a reload after a restart is noticed even if another rank did it. The
            # server gets the name last, so an interrupted load has no name and is repeated.
            before, has = has, f"{self.tag}-{uuid.uuid4().hex[:8]}"
            if self.only_adapter:
                await self._load_adapter(client, has, before)
            else:
                await self._load_model(client)
            await self._send(client, "POST", "/update_weight_version", {"new_version": has})
        if self.only_adapter:
            self.model = has
        return has

    async def _load_model(self, client: httpx.AsyncClient) -> None:
        path = {"weights_path": str(self.directory.resolve())}
        await self._send(client, "POST", "/pause?mode=wait")
        try:
            await self._send(client, "POST", "/collective_rpc", {"method": "reload_weights", "kwargs": path})
            await self._send(client, "POST", "/reset_prefix_cache")
        except BaseException:
            with contextlib.suppress(Unreachable, TimeoutError):  # the first error is the one to report
                async with asyncio.timeout(HELLO):
                    await self._send(client, "POST", "/resume")
            raise
        await self._send(client, "POST", "/resume")

    async def _load_adapter(self, client: httpx.AsyncClient, name: str, before: str) -> None:
        """Loads the adapter under `name` (a new name, so no prefix cache applies), then unloads the previous one, `before`."""
        where = {"lora_name": name, "lora_path": str(self.directory.resolve())}
        try:
            await self._send(client, "POST", "/v1/load_lora_adapter", where)
        except ServerError as error:  # too large a rank, for example: a retry would not help
            raise ValueError(
                f"--vllm_url {self.url}: does not take the adapter ({error}); is its --max-lora-rank at least --lora_r?"
            ) from error
        with contextlib.suppress(ValueError):  # it is gone already, or there was none
            await self._send(client, "POST", "/v1/unload_lora_adapter", {"lora_name": before})

    # ------------------------------------------------------------------- transport

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
        """Sends one request. Raises Unreachable, or ValueError where the server says that the request is wrong."""
        try:
            answer = await client.request(method, self.url + path, json=body)
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
        except httpx.InvalidURL as error:
            raise ValueError(f"--vllm_url {self.url}: {error}") from error
        if answer.status_code == 404:
            start = START_FOR_ADAPTERS if "lora" in path else START
            raise NotFound(f"--vllm_url {self.url}: has no {path.partition('?')[0]}; {start}")
        if answer.status_code >= 500:
            failed = ServerError if answer.status_code == 500 else Unreachable
            raise failed(f"status {answer.status_code}: {answer.text[:300]}")
        if answer.status_code >= 400:
            raise ValueError(f"--vllm_url {self.url}: {path} refused: {answer.text[:500]}")
        if path in SAYS_SO or not answer.content:
            return {}
        try:
            return answer.json()
        except ValueError as error:
            raise Unreachable(f"an answer that is no JSON: {answer.text[:100]!r}") from error

    async def _persist(self, name: str, attempt: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Retries until it succeeds, with growing pauses.

        Raises ValueError, naming the request, once no request of the batch has succeeded for `timeout` seconds. A long batch
        on a working server may take longer in total.
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
        async def inside() -> T:
            async with self.connected() as client:
                return await work(client)

        return run_anywhere(inside())

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[httpx.AsyncClient]:
        """Connects to the server from the event loop that is running."""
        self.alive = time.monotonic()  # when the server last answered a request
        self.loading = asyncio.Lock()  # belongs to this event loop
        self.next_look: asyncio.Future[str] | None = None
        limits = httpx.Limits(max_connections=CONNECTIONS)
        async with httpx.AsyncClient(timeout=httpx.Timeout(None), limits=limits) as client:
            yield client


class ServerAsking:
    """Requests under way on a server, from an event loop on a thread of its own.

    Args:
        server: the server.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.under_way = server, 0
        self._loop: asyncio.AbstractEventLoop
        self._ended: asyncio.Event
        self._places: asyncio.Semaphore
        self._client: httpx.AsyncClient
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, name="vllm requests", daemon=True)
        self._thread.start()
        self._ready.result()

    def ask(self, request: Request) -> Future[Completion]:
        """See `Asking.ask`."""
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    def work(self) -> bool:
        """See `Asking.work`: the server works by itself."""
        return False

    def end(self) -> None:
        """Aborts what is still under way, and closes the connections."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _serve(self) -> None:
        async def inside() -> None:
            self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
            self._places = asyncio.Semaphore(CONNECTIONS)
            async with self.server.connected() as client:
                self._client = client
                self._ready.set_result(None)
                await self._ended.wait()
                under_way = asyncio.all_tasks() - {asyncio.current_task()}
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)  # before their client closes

        try:
            asyncio.run(inside())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _answer(self, request: Request) -> Completion:
        async with self._places:
            if not self.under_way:  # the time without requests does not count towards the timeout
                self.server.alive = time.monotonic()
            self.under_way += 1
            try:
                return await self.server.answer(self._client, request)
            finally:
                self.under_way -= 1


def digest(directory: Path) -> str:
    """Hashes a directory's weights. Equal weights have equal digests, whichever run wrote them."""
    found = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()[:16]
