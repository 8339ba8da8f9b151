"""The two versions of the code under comparison, and the task that the old one makes for both."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .cases import REWARDS
from .runs import exit_code, fork, grpokit, use

ROOT = Path(__file__).resolve().parents[2]


def git(*words: str, may_fail: bool = False) -> str | None:
    """Run git, and return its output, or None where it fails and may."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if done.returncode and not may_fail:
        raise RuntimeError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return None if done.returncode else done.stdout.strip()


def is_commit(name: str) -> bool:
    """Say if the repository has a commit of this name."""
    return git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", may_fail=True) is not None


def title(commit: str | None) -> str:
    """A version in words: short hash and first line."""
    return "the working tree" if commit is None else str(git("log", "-1", "--format=%h %s", commit))


@contextmanager
def versions(commits: Mapping[str, str | None], folder: Path) -> Iterator[dict[str, Path]]:
    """Lay out versions under `folder`, and yield name → src; worktrees are removed at the end.

    None is the working tree: what git tracks or not, as it stands now.
    """
    made: list[Path] = []
    code = {}
    try:
        for side, commit in commits.items():
            place = folder / f"{side}-version"
            if commit is None:
                hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(ROOT / "src", place / "src", ignore=hidden)
            else:
                made.append(place)
                git("worktree", "add", "--detach", str(place), commit)
            code[side] = place / "src"
        yield code
    finally:
        for place in made:
            git("worktree", "remove", "--force", str(place), may_fail=True)


def losses_of(code: Path, place: Path) -> list[str]:
    """The names of a version's losses, in the order of its table."""
    file = place / "losses.txt"

    def write() -> int:
        use(code)
        from grpokit.losses import LOSSES

        file.write_text("\n".join(LOSSES), encoding="utf-8")
        return 0

    done(fork(write, place / "losses.log"), place / "losses.log")
    return file.read_text(encoding="utf-8").split()


def make_task(code: Path, place: Path) -> None:
    """Make the task's directory, from which every run of either version starts."""
    task = place / "task"

    def write() -> int:
        use(code)
        return grpokit(["task", "sort_digits", "--output_dir", str(task)])

    done(fork(write, place / "task.log"), place / "task.log")
    (task / "rewards.py").write_text(REWARDS, encoding="utf-8")
    shutil.copy(code.parent / "recipes" / "demo.yaml", task / "demo.yaml")


def done(child: int, log: Path) -> None:
    """Wait for a child without which nothing can be compared; ends with its last words where it failed."""
    if exit_code(child):
        print(log.read_text(errors="replace"), file=sys.stderr)
        print("error: the old version cannot do this, so there is nothing to compare with", file=sys.stderr)
        sys.exit(2)
