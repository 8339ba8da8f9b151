"""The Hugging Face Hub: `org/name[@revision]` of a model becomes a directory of its cache; without a network, caches serve."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from .text import one_line

HUB_MODEL = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
# Weights as safetensors, configuration, tokenizer and chat template; nothing that is pickled.
FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py"]
SECONDS = 10.0  # until the Hub counts as out of reach


def is_hub_model(name: str) -> bool:
    """Tells whether `name` can only be a model of the Hub: org/name or org/name@revision, and no path that exists.

    Example:
        >>> is_hub_model("Qwen/Qwen2.5-0.5B-Instruct@main"), is_hub_model("./Qwen"), is_hub_model("a/b/c")
        (True, False, False)
    """
    return HUB_MODEL.fullmatch(name) is not None and not os.path.exists(name)


def model_directory(name: str, flag: str) -> str:
    """The directory of a model: `name` itself, or the snapshot of a Hub model, downloaded where it isn't in the cache.

    Without a network (or with HF_HUB_OFFLINE=1) the cache is used as it is. Raises ValueError naming `flag` where the Hub
    has no such model, or the cache lacks it and the Hub can't be reached.
    """
    return _snapshot(name, flag) if is_hub_model(name) else name


@contextmanager
def dataset_cache(name: str) -> Iterator[None]:
    """Puts the Hub's libraries in offline mode if the Hub can't be reached for dataset `name`.

    Otherwise they would retry for half a minute before they use their caches.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    modules: list[Any] = [constants]
    with suppress(ImportError):
        from datasets import config

        modules.append(config)
    before = [getattr(module, "HF_HUB_OFFLINE", False) for module in modules]
    reached = not constants.HF_HUB_OFFLINE
    if reached:
        try:
            HfApi().dataset_info(name, timeout=SECONDS)
        except HfHubHTTPError:  # it has answered
            pass
        except Exception:  # noqa: BLE001 - the HTTP library has errors of its own
            reached = False
    for module in modules:
        module.HF_HUB_OFFLINE = not reached
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


@lru_cache(maxsize=32)
def _snapshot(name: str, flag: str) -> str:
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, _, revision = name.partition("@")
    reason = "HF_HUB_OFFLINE is set"
    offline = bool(constants.HF_HUB_OFFLINE)
    if not offline:
        try:  # asked once, with a limit: a download would try again for half a minute
            HfApi().model_info(repo, revision=revision or None, timeout=SECONDS)
        except GatedRepoError as error:
            raise ValueError(
                f"{flag} {name}: the Hub gives it to those who accepted its terms; accept them there and log in with "
                "`hf auth login`"
            ) from error
        except RevisionNotFoundError as error:
            raise ValueError(f"{flag} {name}: the Hub's {repo} has no revision {revision}") from error
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"{flag} {name}: no such directory, and the Hub has no such model (or it is private: log in with "
                "`hf auth login`)"
            ) from error
        except Exception as error:  # noqa: BLE001 - the HTTP library has errors of its own; the cache may have the model
            offline, reason = (
                True,
                f"the Hub can't be reached: {one_line(error, 120) or type(error).__name__}",
            )
    try:
        path = snapshot_download(
            repo, revision=revision or None, allow_patterns=FILES, local_files_only=offline
        )
    except (LocalEntryNotFoundError, FileNotFoundError) as error:
        raise ValueError(
            f"{flag} {name}: no such directory, and not in the Hub's cache ({reason}); download it once with a network, or "
            "name a directory"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(f"{flag} {name}: could not be downloaded: {one_line(error)}") from error
    if not any((Path(path) / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise ValueError(
            f"{flag} {name}: its snapshot in the Hub's cache has no config.json; download it again"
        )
    return path
