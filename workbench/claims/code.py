"""What code a claim rests on: a digest that changes when that code does something else, not when it is reformatted."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sae.files import sha256_json

OWN = ("sae", "crosscoders", "workbench")
# What the lab makes lies in the workspace, with versions and recipes of its own: its file counts, not what it calls
MADE_APART = ("workbench.claims.lab",)


@cache
def code_digest(module: str, own: tuple[str, ...] = OWN, made_apart: tuple[str, ...] = MADE_APART) -> str:
    """sha256 of a module and of every module of the packages ``own`` that it imports, directly or through others:
    syntax trees without docstrings. Imports inside functions count, those for type checkers do not.

    Args:
        made_apart: modules of which only the file itself counts, not what it imports.
    """
    trees: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = None if name in trees else _file(name)
        if file is None:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if name not in made_apart:
            waiting += [found for found in _imports(tree, name, file) if found.partition(".")[0] in own]
        trees[name] = ast.dump(_plain(tree))
    return str(sha256_json(sorted(trees.items())))


def _file(name: str) -> Path | None:
    """A module's source file; None for what is no module (a name inside one)."""
    try:
        spec = find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _imports(tree: ast.AST, name: str, file: Path) -> Iterator[str]:
    """Names of the modules a tree imports; ``from package import x`` gives both the package and ``package.x``."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for other in node.orelse:
                yield from _imports(ast.Module([other], []), name, file)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")
            base = ".".join([*above[: len(above) - node.level + 1], node.module or ""]) if node.level else node.module
            base = (base or "").strip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, name, file)


def _plain(tree: ast.Module) -> ast.Module:
    """The tree without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
