"""Processes that start in a moment: one that has imported everything forks them, where starting is not what is tested.

Importing torch and transformers takes a process longer than a tiny run does. `run` is for one command of a test. `make_programs`
is for what starts commands itself, such as a shell: it finds a small program, which has the command forked.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn


def run(
    program: object, *arguments: object, ranks: int = 1, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess:
    """`python -m program ...`, or `python program.py ...`, or its ranks as torchrun would start them.

    The code is the first that isn't 0. A run's report has no pictures.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = {"program": str(program), "arguments": [str(word) for word in arguments], "ranks": ranks}
        request |= {"timeout": timeout, "environment": environment, "folder": folder, "cwd": os.getcwd()}
        codes = ask(request)
        said = {
            name: "".join(path.read_text() for path in sorted(Path(folder).glob(f"*.{name}")))
            for name in ("stdout", "stderr")
        }
    return subprocess.CompletedProcess(arguments, next(filter(None, codes), 0), **said)


def make_programs(folder: Path, programs: dict[str, list[str]]) -> None:
    """Write programs into `folder`: each calls `python` with these words and its own, in a process that is forked.

    As a process that was started does, it has the caller's directory, environment, input and outputs; its report has pictures.
    """
    address = str(folder / "socket")
    for name, words in programs.items():
        client = [sys.executable, "-I", "-S", __file__, address, *words]
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.join(client)} "$@"\n')
        (folder / name).chmod(0o755)
    ask({"listen": address})


def ask(request: dict) -> Any:
    """The server's answer."""
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def _server() -> subprocess.Popen:
    from helpers.launch import ENVIRONMENT

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

# What a run imports. All else that is heavy comes with it.
IMPORTED = (
    "grpokit.commands.cli",
    "grpokit.training.session",
    "grpokit.training.trainer",
    "grpokit.runs.report.page",
    "torch.distributed.fsdp",
    "transformers.models.qwen3.modeling_qwen3",
)


def serve() -> None:
    """Answer each line of stdin, a request, until stdin ends: with the ranks' exit codes, or the process that listens."""
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "listen" in request:
            said = listen(request["listen"])
        else:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            pids = [fork(request, rank, port) for rank in range(request["ranks"])]
            said = codes_of(pids, time.monotonic() + request["timeout"])
        print(json.dumps(said), flush=True)


def fork(request: dict, rank: int, port: int) -> int:
    """Start one rank; its process id."""
    pid = os.fork()
    if pid:
        return pid
    outputs = [f"{request['folder']}/{rank}.{name}" for name in ("stdout", "stderr")]
    files = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, os.O_WRONLY | os.O_CREAT) for path in outputs)]
    environment = os.environ | request["environment"]
    if request["ranks"] > 1:
        size = str(request["ranks"])
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size}
        environment |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from helpers import quick_reports

    quick_reports.quick()
    become(request | {"environment": environment}, files)


def become(request: dict, files: list[int]) -> NoReturn:
    """Run the program in this process, to its end."""
    code = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - as long as the process
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        program = request["program"]
        sys.argv = [program, *request["arguments"]]
        if program.endswith(".py"):
            sys.path[0] = str(Path(program).resolve().parent)
            runpy.run_path(program, run_name="__main__")
        else:
            sys.path[0] = request["cwd"]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def listen(address: str) -> int:
    """Start a process that forks what is asked for at a Unix socket, and ends when this one does; its process id."""
    place = socket.socket(socket.AF_UNIX)
    place.bind(address)
    place.listen()
    place.settimeout(1)
    server, pid = os.getpid(), os.fork()
    if pid:
        place.close()
        return pid
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while os.getppid() == server:
        with suppress(TimeoutError):
            caller, _ = place.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(caller)
            caller.close()
    os._exit(0)


def answer(caller: socket.socket) -> NoReturn:
    """Fork the program that the caller wants, wait for it, and tell its exit code."""
    _, files, _, _ = socket.recv_fds(caller, 1, 3)
    request = json.loads(caller.makefile().readline())
    pid = os.fork()
    if pid == 0:
        caller.close()
        become(request, files)
    _, status = os.waitpid(pid, 0)
    caller.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


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


def call(address: str, words: list[str]) -> int:
    """Have `python words...` forked with this process's files, and wait for its exit code."""
    if words[0] == "-m":
        words = words[1:]
    program, *arguments = words
    request = {
        "program": program,
        "arguments": arguments,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
    }
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b" "], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        return int(server.recv(100) or 1)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(call(sys.argv[1], sys.argv[2:]))
    serve()
