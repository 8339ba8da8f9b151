"""The walls of the house, checked on the imports themselves."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

import grpokit

ROOT = Path(grpokit.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth."""
    package = ["grpokit", *path.relative_to(ROOT).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found


def is_in(path: Path, *rooms: str) -> bool:
    return any(path.relative_to(ROOT).as_posix().startswith(room) for room in rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_rooms_import_only_what_they_may(path):
    for name in imports(path):
        top = name.split(".")[0]
        if is_in(path, "losses/"):
            # grpokit.common.noise is a pure function of tensors; grpokit.common.imports is imported when a user names a file.
            pure = (
                name in ("grpokit.types", "grpokit.common.noise", "grpokit.common.imports") or top == "torch"
            )
            allowed = pure or top in sys.stdlib_module_names - {"os", "pathlib", "io", "subprocess", "socket"}
            assert allowed or name.startswith("grpokit.losses"), name
        if top == "transformers":
            rooms = (
                "rollouts/",
                "pretrained.py",
                "adapter.py",
                "architecture.py",
                "prompts.py",
                "export.py",
                "tasks/",
                "cli.py",
                "rewards/model.py",
            )
            assert is_in(path, *rooms), name
        assert not name.startswith("torch.distributed") or is_in(path, "parallel.py"), name
        assert top != "pickle", name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_the_table_knows_losses_by_name(path):
    if not is_in(path, "losses/family.py"):
        assert not re.search(
            r"loss_type\s*(==|in\b|!=)|\.name\s*==\s*[\"'](grpo|bnpo|dr_grpo|dapo|cispo|sapo)",
            path.read_text(),
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_stay_readable(path):
    assert len(path.read_text().splitlines()) <= 360
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 75, node.name
    if is_in(path, "loop.py"):
        assert len(path.read_text().splitlines()) <= 60


def _public(path: Path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        yield member


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_is_public_is_documented(path):
    assert ast.get_docstring(ast.parse(path.read_text())) or path.name == "__main__.py"
    for node in _public(path):
        assert ast.get_docstring(node), node.name


def test_surrogates_read_like_their_equations():
    from grpokit.losses import SURROGATES

    tree = ast.parse((ROOT / "losses" / "surrogates.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in SURROGATES:
            assert node.end_lineno - node.body[0].end_lineno <= 15, node.name
