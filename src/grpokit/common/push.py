"""Uploads a directory to the Hugging Face Hub. The token comes from HF_TOKEN or `hf auth login`, and is never shown."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from .text import one_line

# An earlier model's files, deleted from the repository so that none is loaded with the new model. Other files stay.
REPLACED = [
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_*",
    "config.json",
    "generation_config.json",
]


def check_push(name: str, private: bool = False, revision: str = "") -> None:
    """Checks that the token may write, and creates the repository and the branch if they don't exist.

    Raises:
        ValueError: an upload would fail; the message names --push_to_hub and the fix.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api, doing = HfApi(), "the token is not valid; set another in HF_TOKEN, or log in with `hf auth login`"
    try:
        api.whoami()
        doing = "the token may not write to it; use one that may write, or another name"
        api.create_repo(name, private=private or None, exist_ok=True)
        api.auth_check(name, write=True)
        if revision:
            doing = f"cannot make the branch {revision}"
            api.create_branch(name, branch=revision, exist_ok=True)
    except LocalTokenNotFoundError:
        why = "there is no token of the Hub; set HF_TOKEN, or log in with `hf auth login`"
    except OfflineModeIsEnabled:
        why = "HF_HUB_OFFLINE is set; unset it, or leave --push_to_hub out"
    except HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403, 404)
        why = doing if refused else f"the Hub refused it: {reason_of(error)}"
    except Exception as error:  # noqa: BLE001 - the HTTP library has errors of its own
        why = f"the Hub can't be reached ({type(error).__name__}: {reason_of(error)}); leave it out to train without it"
    else:
        return
    raise ValueError(f"--push_to_hub {name}: {why}")


def push_folder(folder: Path, name: str, revision: str, message: str) -> str:
    """Uploads a model's directory, in place of an earlier model's files.

    Args:
        folder: the directory.
        name: the repository, as ORG/NAME.
        revision: its branch; "": main.
        message: the commit's message.

    Returns:
        The address of the repository.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.upload_folder(
        repo_id=name,
        folder_path=folder,
        revision=revision or None,
        commit_message=message,
        delete_patterns=list(REPLACED),
    )
    return f"{api.endpoint}/{name}" + (f"/tree/{revision}" if revision else "")


def push_command(folder: Path, name: str, revision: str = "") -> str:
    """Returns the command that uploads a directory by hand.

    Example:
        >>> push_command(Path("runs/demo/final"), "me/demo", "v2")
        'hf upload me/demo runs/demo/final . --revision v2'
    """
    words = ["hf", "upload", name, str(folder), ".", *(["--revision", revision] if revision else [])]
    return shlex.join(words)


def reason_of(error: Any) -> str:
    """Returns an error's message in one line, without the token, which the HTTP library may quote."""
    from huggingface_hub import get_token

    text, token = one_line(error, 200) or type(error).__name__, get_token()
    return text.replace(token, "***") if token else text
