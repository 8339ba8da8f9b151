"""Asks a language model behind an OpenAI-compatible endpoint, again and again while it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from ..common.text import one_line

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries; each pause is twice the last
HELLO = 30.0  # seconds to wait for the list of models
ASKED, LISTED = "/chat/completions", "/models"  # the paths of answers, and of the list of models
BUSY = (408, 409, 425, 429)  # statuses that say: try again
TOO_LONG = ("context_length_exceeded", "context length", "maximum context")  # in a refusal of a long request


class Failed(Exception):
    """A try got no usable answer. Another try may get one."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause  # seconds that the endpoint asks to wait


class TooLong(Exception):
    """The request is longer than the model's context."""


@dataclass(frozen=True)
class Endpoint:
    """An endpoint, such as a vLLM server.

    Raises:
        ValueError: from `only_model` and `ask`, if the endpoint can't be used. The message names --judge_url.

    Example:
        >>> Endpoint("127.0.0.1:8000").address, Endpoint("https://host/openai/").address
        ('http://127.0.0.1:8000/v1', 'https://host/openai')
        >>> Endpoint("http://host/v1/chat/completions").address
        'http://host/v1'
    """

    url: str  # as the user wrote it
    key: str = field(default="", repr=False)
    retries: int = 3
    timeout: float = 60.0  # seconds of one try
    connections: int = 16

    @property
    def address(self) -> str:
        """The base URL of the endpoint's paths. If the user's URL has no path, /v1 is added.

        A path that the endpoint itself adds, such as /chat/completions, is left out.
        """
        url = (self.url if "://" in self.url else f"http://{self.url}").rstrip("/")
        if not urlsplit(url).path:
            return f"{url}/v1"
        for path in (ASKED, "/completions", LISTED):
            url = url.removesuffix(path)
        return url

    def only_model(self) -> str:
        """Returns the name of the endpoint's only model."""
        try:
            answer = httpx.get(f"{self.address}{LISTED}", headers=self._headers, timeout=HELLO)
            names = [str(model["id"]) for model in self._checked(answer)["data"]]
        except (httpx.HTTPError, httpx.InvalidURL, Failed, TooLong) as error:
            raise self._error(f"no endpoint answers there ({self._said(error)}); is it running?") from error
        except (KeyError, TypeError) as error:
            raise self._error("lists no models; name one by --judge_model") from error
        if len(names) != 1:
            raise self._error(f"has {len(names)} models ({', '.join(names)}); name one by --judge_model")
        return names[0]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Opens the connections of one round of scoring."""
        limits = httpx.Limits(max_connections=self.connections)
        async with httpx.AsyncClient(
            timeout=httpx.Timeout(None), limits=limits, headers=self._headers
        ) as client:
            yield client

    async def ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """Returns the first choice of the answer, and how many tries had failed before.

        Raises:
            TooLong: the request is longer than the model's context.
            ValueError: the endpoint refuses the request, or every try failed.
        """
        failed, pause = 0, FIRST_PAUSE
        while True:
            try:
                return await self._try(client, body), failed
            except Failed as error:
                failed += 1
                if failed > self.retries:
                    raise self._error(
                        f"no answer in {failed} tries ({self._said(error)}); see that it runs, or raise "
                        "--judge_retries or --judge_timeout"
                    ) from error
                await asyncio.sleep(min(max(pause, error.pause), LONGEST_PAUSE))
                pause *= 2

    async def _try(self, client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self.timeout):
                answer = await client.post(f"{self.address}{ASKED}", json=body)
            choice = self._checked(answer)["choices"][0]
            return {"finish_reason": choice.get("finish_reason"), "message": dict(choice["message"])}
        except TimeoutError as error:
            raise Failed(f"none within {self.timeout:g} seconds") from error
        except httpx.HTTPError as error:
            raise Failed(f"{type(error).__name__}: {error}") from error
        except httpx.InvalidURL as error:
            raise self._error(str(error)) from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, EndpointError):
                raise
            raise Failed("its answer is not that of a chat endpoint") from error

    def _checked(self, answer: httpx.Response) -> Any:
        """Returns the answer's JSON. Raises Failed, TooLong or ValueError for a status that is no success."""
        if answer.is_success:
            return answer.json()
        said = f"status {answer.status_code}: {one_line(answer.text)}"
        if answer.status_code in BUSY or answer.status_code >= 500:
            seconds = answer.headers.get("retry-after", "")
            raise Failed(said, float(seconds) if seconds.isdigit() else 0.0)
        if any(word in answer.text.lower() for word in TOO_LONG):
            raise TooLong(said)
        raise self._error(f"refuses the request ({self._said(said)})")

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def _said(self, text: object) -> str:
        """Returns what the endpoint said, without the key, which it may repeat."""
        said = str(text)
        return one_line(said.replace(self.key, "***") if self.key else said)

    def _error(self, why: str) -> EndpointError:
        return EndpointError(f"--judge_url {self.url}: {why}")


class EndpointError(ValueError):
    """The endpoint can't be used. No further try would help."""
