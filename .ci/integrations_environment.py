"""An environment with other trainers, for the tests of grpokit inside them: python .ci/integrations_environment.py DIR BASE

It sees every package of BASE, grpokit's own environment, and adds the trainers alone. So it takes seconds, and the
versions of everything else are the ones that grpokit is tested with.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

# Their own requirements are in BASE; EXTRA has what isn't.
TRAINERS = ("trl==1.16.0", "verl==0.9.1")
# What verl's losses import, and hydra, which reads its config files. No Ray runs.
EXTRA = (
    *("ray==2.60.0", "tensordict==0.10.0", "codetiming==1.4.0", "omegaconf==2.3.0", "hydra-core==1.3.8"),
    *("antlr4-python3-runtime==4.9.3", "cloudpickle==3.1.3", "msgpack==1.2.4", "pyvers==0.2.3"),
)


def site_packages(place: Path) -> Path:
    """The directory of an environment's packages."""
    (found,) = place.glob("lib/python*/site-packages")
    return found.absolute()


def main() -> None:
    place, base = Path(sys.argv[1]), Path(sys.argv[2])
    ready = place / f".ready-{'-'.join((*TRAINERS, *EXTRA))}"
    if ready.exists():
        return
    print(f"installing {', '.join(TRAINERS)} into {place}, over {base}", flush=True)
    venv.create(place, clear=True, with_pip=False, symlinks=True)
    # addsitedir reads the .pth files there too, so that grpokit's editable install is found.
    line = f"import site; site.addsitedir({str(site_packages(base))!r})\n"
    (site_packages(place) / "base.pth").write_text(line)
    pip = [str(base / "bin" / "python"), "-m", "pip", "--python", str(place / "bin" / "python")]
    install = [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*install, *TRAINERS, *EXTRA], check=True)
    ready.touch()


if __name__ == "__main__":
    main()
