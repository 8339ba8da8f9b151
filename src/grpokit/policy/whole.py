"""Checks that a loaded model is whole: no weight is missing, no file damaged, no half of it left behind."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)


def check_report(report: Mapping[str, Any], path: str, flag: str) -> None:
    """Raises ValueError where weights are missing, which would be random; names those that the model doesn't use.

    Args:
        report: transformers' loading info.
        path: the model's directory.
        flag: the option that named it.
    """
    missing = sorted(report["missing_keys"])
    wrong = sorted(
        f"{name} ({tuple(found)}, not {tuple(expected)})"
        for name, found, expected in report["mismatched_keys"]
    )
    for keys, what in ((missing, "lacks"), (wrong, "has the wrong shape for")):
        if keys:
            raise ValueError(
                f"{flag} {path}: {what} {_some(keys)} of the model that its config.json describes, and they would be random; "
                "download the weights again, or correct config.json"
            )
    unused = sorted(report["unexpected_keys"])
    if unused:
        log.warning("%s %s: has weights that the model does not use: %s", flag, path, _some(unused))


def check_whole(model: Any, path: str, flag: str, refuses: bool) -> None:
    """Says where only the language model of a multimodal directory was loaded; raises ValueError where it will be saved.

    Args:
        model: the loaded model.
        path: its directory.
        flag: the option that named it.
        refuses: whether the model will be saved, so that half of it is refused.
    """
    described = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    lost = [
        name
        for name in ("vision_config", "audio_config")
        if described.get(name) and getattr(model.config, name, None) is None
    ]
    if lost and not refuses:
        log.warning("%s %s: is multimodal (%s); its language model alone is used", flag, path, lost[0])
    elif lost:
        raise ValueError(
            f"{flag} {path}: is multimodal ({lost[0]}), and {type(model).__name__} is its language model alone, so that saved "
            "models would lack the rest; save the language model to a directory of its own and train that: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )


def _some(keys: list[str]) -> str:
    """Names the first few of several tensors."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more tensors" if len(keys) > 3 else "")


def damaged_weights(path: str) -> str:
    """Says which file of a model's directory is damaged, and how as far as it can be told."""
    for file in sorted(Path(path).glob("*.safetensors")):
        head = file.read_bytes()[:64] if file.stat().st_size < 4096 else b""
        if head.startswith(b"version https://git-lfs"):
            return f"{file.name} is a pointer of git-lfs; fetch the file itself with `git lfs pull`"
        try:
            with safe_open(file, "np") as readable:
                readable.keys()
        except SafetensorError:
            return f"{file.name} is damaged ({file.stat().st_size:,} bytes); download it again"
    return "its weights are damaged; download them again"
