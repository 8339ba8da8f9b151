"""Processes that start in a moment: one that has imported everything forks them, where starting is not what is tested.

Importing torch and transformers takes a process longer than a tiny run does.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from helpers.launch import ENVIRONMENT


def run(
    module: str, *arguments: object, ranks: int = 1, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess:
    """`python -m module ...`, or its ranks as torchrun would start them; the code is the first that isn't 0."""
    with tempfile.TemporaryDirectory() as folder:
        request = {"module": module, "arguments": [str(word) for word in arguments], "ranks": ranks}
        request |= {"timeout": timeout, "environment": environment, "folder": folder}
        server = _server()
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        codes = json.loads(server.stdout.readline())
        said = {
            name: "".join(path.read_text() for path in sorted(Path(folder).glob(f"*.{name}")))
            for name in ("stdout", "stderr")
        }
    return subprocess.CompletedProcess(arguments, next(filter(None, codes), 0), **said)


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-m", "helpers.forked"],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    return server


# --------------------------------------------------------------------------- the process that forks


def serve() -> None:
    """Answer each line of stdin, a request, with the exit codes of its ranks; until stdin ends."""

    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [fork(request, rank, port) for rank in range(request["ranks"])]
        print(json.dumps(codes_of(pids, time.monotonic() + request["timeout"])), flush=True)


def fork(request: dict, rank: int, port: int) -> int:
    """Start one rank; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{request['folder']}/{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["environment"])
        if request["ranks"] > 1:
            size = str(request["ranks"])
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size}
            os.environ |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        sys.argv = [request["module"], *request["arguments"]]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def codes_of(pids: list[int], deadline: float) -> list[int]:
    """The exit codes, a signal's number below 0; where one rank fails, the others get some seconds more."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    codes[pid] = os.waitstatus_to_exitcode(status)
                    if codes[pid]:
                        deadline = min(deadline, time.monotonic() + 30)
                elif time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


if __name__ == "__main__":
    serve()
