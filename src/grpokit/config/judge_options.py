"""Options of the `judge` reward: a language model that scores completions."""

from __future__ import annotations

from dataclasses import dataclass

from .resume import free, steering

OPENAI_KEY = "OPENAI_API_KEY"


@dataclass(frozen=True)
class JudgeOptions:
    """The judge: a language model that scores completions (--reward_funcs judge)."""

    judge_url: str = free("")
    """An OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."""
    judge_model: str = steering("")
    """The endpoint's model (default: its only one)."""
    judge_rubric: str = steering("")
    """Text file with the judge's instructions. {prompt}, {completion}, {answer} and {any column} are filled in. It must ask
    for a last line `Score: N`, N from 0 to 10 (default: a general rubric)."""
    judge_max_tokens: int = steering(1024)
    """Longest answer of the judge in tokens."""
    judge_retries: int = steering(3)
    """Further tries after a refusal, an answer without a score, or a failure of the endpoint."""
    judge_concurrency: int = free(16)
    """Most requests at once, on each rank."""
    judge_timeout: float = free(60.0)
    """Seconds that one request may take."""
    judge_cache: str = free("")
    """Directory that keeps every verdict, so that nothing is asked twice. Several runs may share it (default: none)."""
    judge_api_key_env: str = free(OPENAI_KEY)
    """Environment variable with the endpoint's key. The key is never written anywhere."""
