"""Lets other processes import the modules that were made of users' files, by the names that these have here.

Python sends a function to another process as the name of its module, and that process imports it: a worker of a pool that
was spawned, or one of joblib or Ray. A file that a user named has a module of a name of its own, which no import would find.
So a small module of that name is written to a directory that is on `sys.path`, which spawned processes inherit.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

_directory: Path | None = None


def publish(name: str, path: Path, contents: bytes) -> None:
    """Makes the module `name`, with the contents of a user's file, importable in child processes.

    Args:
        name: the module's name in this process.
        path: the user's file, which tracebacks name.
        contents: what was in it when this process imported it.
    """
    stub = (
        f"__file__ = {str(path)!r}\n"
        f"exec(compile({contents!r}, __file__, 'exec', dont_inherit=True))  # as it was when the run began\n"
    )
    try:
        directory = _open_directory()
        writing = directory / f"{name}.{os.getpid()}.writing"
        writing.write_text(stub, encoding="utf-8")
        writing.replace(directory / f"{name}.py")
    except OSError:  # no room for temporary files; only pools of the user's own would need it
        return
    if str(directory) not in sys.path:
        sys.path.append(str(directory))
    known = os.environ.get("PYTHONPATH", "")
    if str(directory) not in known.split(os.pathsep):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [known, str(directory)]))


def _open_directory() -> Path:
    """Returns the directory of this process's modules. It is removed when the process that made it ends."""
    global _directory
    if _directory is None or not _directory.is_dir():
        _directory = Path(tempfile.mkdtemp(prefix="grpokit-modules-"))
        atexit.register(_remove, _directory, os.getpid())
    return _directory


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:  # a fork of it has no say
        shutil.rmtree(directory, ignore_errors=True)
