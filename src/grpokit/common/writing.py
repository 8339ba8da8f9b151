"""Writes a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, under a temporary name first. Makes its directory.

    Raises:
        OSError: it cannot be written. What was there before is unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "new" / "a.txt"
        >>> write_text(path, "1")
        >>> path.read_text()
        '1'
    """
    _write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a .safetensors file, under a temporary name first. Makes its directory. Raises OSError as `write_text` does."""
    from safetensors.torch import save_file

    found = {name: tensor.contiguous() for name, tensor in tensors.items()}
    _write(path, lambda temporary: save_file(found, temporary, metadata=dict(metadata or {})))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except Exception as error:  # safetensors has its own error for a full disk
        if isinstance(error, OSError) or "os error" in str(error):
            why = getattr(error, "strerror", None) or str(error)
            raise OSError(f"{path}: could not be written: {why}") from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
