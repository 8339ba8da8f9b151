"""Two hosts on one machine: network namespaces joined by a veth pair, a torchrun agent in each. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import forked
from helpers.disturbed import SLOW, close_to, steps_done, write_config
from helpers.launch import ENVIRONMENT, launcher

HOSTS = ("grpokit-a", "grpokit-b")
ADDRESSES = ("10.231.77.1", "10.231.77.2")


def ip(*arguments: str) -> bool:
    return subprocess.run(["ip", *arguments], capture_output=True).returncode == 0


def take_down() -> None:
    for host in HOSTS:
        ip("netns", "delete", host)  # its end of the pair goes with it


@pytest.fixture
def hosts():
    """Two namespaces with an address each, that reach each other."""
    take_down()
    built = (
        shutil.which("ip") is not None
        and all(ip("netns", "add", host) for host in HOSTS)
        and ip(*f"link add veth0 netns {HOSTS[0]} type veth peer name veth0 netns {HOSTS[1]}".split())
    )
    for host, address in zip(HOSTS, ADDRESSES, strict=True):
        built = built and all(
            ip("-n", host, *command)
            for command in (
                ("addr", "add", f"{address}/24", "dev", "veth0"),
                ("link", "set", "veth0", "up"),
                ("link", "set", "lo", "up"),
            )
        )
    if not built:
        take_down()
        pytest.skip("NOT TESTED: two hosts (network namespaces and veth pairs are not permitted here)")
    yield HOSTS
    take_down()


def agent(host: str, command: tuple[str, ...], log: Path, job: str) -> subprocess.Popen:
    """A torchrun in `host`, one of two, that starts one rank."""
    flags = (
        "--nnodes=2",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={ADDRESSES[0]}:29511",
        f"--rdzv-id={job}",
        # A namespace has no name of its own to tell by.
        f"--rdzv-conf=is_host={int(host == HOSTS[0])}",
        f"--local-addr={ADDRESSES[HOSTS.index(host)]}",
        "--shutdown-timeout=5",
    )
    with log.open("w") as file:
        return subprocess.Popen(
            ["ip", "netns", "exec", host, *launcher(1, *flags), *command],
            env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": "veth0"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def finish(agents: list[subprocess.Popen], seconds: float) -> list[int | None]:
    deadline = time.monotonic() + seconds
    codes = []
    for process in agents:
        try:
            codes.append(process.wait(max(1, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            codes.append(None)
    for process in agents:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return codes


@pytest.mark.slow
def test_two_hosts_train_the_same_weights_and_survive_a_cut(hosts, tmp_path):
    command = (
        "-m",
        "grpokit",
        *write_config(tmp_path, reward_funcs=(SLOW,), save_steps=1),
        "--ddp_timeout",
        "10",
    )
    one = forked.run(*command[1:], "--output_dir", tmp_path / "one-host", ranks=2)
    assert one.returncode == 0, one.stderr[-3000:]

    def start(job: str, *flags: str) -> list[subprocess.Popen]:
        return [agent(host, (*command, *flags), tmp_path / f"{job}-{host}.log", job) for host in hosts]

    def logs(job: str) -> str:
        return "\n".join((tmp_path / f"{job}-{host}.log").read_text() for host in hosts)

    assert finish(start("whole", "--output_dir", str(tmp_path / "whole")), 180) == [0, 0], logs("whole")
    close_to(tmp_path / "whole", tmp_path / "one-host")

    agents = start("cut", "--output_dir", str(tmp_path / "cut"))
    deadline = time.monotonic() + 120
    while steps_done(tmp_path / "cut") < 3:
        assert time.monotonic() < deadline, logs("cut")
        assert agents[0].poll() is None, logs("cut")
        time.sleep(0.05)
    ip("-n", hosts[1], "link", "set", "veth0", "down")
    (code,) = finish(agents[:1], 60)
    finish(agents[1:], 1)  # the host that is cut off: its agent waits for a rendezvous that it can't reach
    assert code, f"{'still running a minute after the cut' if code is None else 'no error'}\n{logs('cut')}"
    assert "error: rank 0 of 2" in (tmp_path / f"cut-{hosts[0]}.log").read_text(), logs("cut")
    done = steps_done(tmp_path / "cut")
    assert done < 8

    ip("-n", hosts[1], "link", "set", "veth0", "up")
    again = start("again", "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint", "auto")
    assert finish(again, 180) == [0, 0], logs("again")
    close_to(tmp_path / "cut", tmp_path / "one-host")
