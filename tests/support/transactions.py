"""Every kind of transaction that the program has: found in its source, and told while it runs.

A kind is the function that asks for the transaction: ``engine.buckets:Buckets.create``. A function
that runs what others hand it (``HELPERS``) is none; those who call it are.

So that none escapes, a database goes by a few names only (``NAMES``), and ``strangers`` finds those
that do not.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "s3", "fs", "dav", "cli")
PLAIN_NAMES = frozenset({"db", "_db", "database", "_database"})
NAMES = PLAIN_NAMES | {"source", "target"}
"""What a database is called, as a variable or an attribute."""
HELPERS = {
    "engine.commit:commit": "commit",
    "engine.meta.read_only:GuardedDatabase.run": "GuardedDatabase",
}
"""By kind: the name that callers import."""


def kind_of(code: CodeType) -> str | None:
    """Return the kind of transaction that this function asks for; None: it is not ours."""
    path = Path(code.co_filename)
    if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in PACKAGES:
        return None
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return f"{module}:{code.co_qualname.replace('.<locals>', '')}"


def kind_of_caller(frame: FrameType | None) -> str | None:
    """Return the kind of the nearest frame that is no helper."""
    while frame is not None:
        kind = kind_of(frame.f_code)
        if kind not in HELPERS:
            return kind
        frame = frame.f_back
    return None


@functools.cache
def _modules() -> list[tuple[str, ast.Module]]:
    return [
        (".".join(path.relative_to(ROOT).with_suffix("").parts), ast.parse(path.read_bytes()))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ]


def _walk(node: ast.AST, names: tuple[str, ...] = ()) -> Iterator[tuple[ast.AST, str]]:
    """Yield every node with the qualified name of the function that it is in."""
    for child in ast.iter_child_nodes(node):
        yield child, ".".join(names)
        is_scope = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _walk(child, (*names, child.name) if is_scope else names)


def _last_name(node: ast.AST) -> str:
    match node:
        case ast.Attribute(attr=name) | ast.Name(id=name):
            return name
    return ""


def kinds() -> set[str]:
    """Return all kinds of transactions that the source has."""
    found = set()
    for module, tree in _modules():
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if f"{node.module}:{alias.name}" in HELPERS
        }
        for node, function in _walk(tree):
            match node:
                case ast.Attribute(attr="run", value=receiver) if _last_name(receiver) in NAMES:
                    found.add(f"{module}:{function}")
                case ast.Name(id=name) if name in imported:
                    found.add(f"{module}:{function}")
    return found - HELPERS.keys()


def strangers() -> list[str]:
    """Return where a database goes by another name than ``NAMES``."""
    found = []
    for module, tree in _modules():
        for node in ast.walk(tree):
            match node:
                case (
                    ast.arg(arg=name, annotation=ast.Name(id="Database"))
                    | ast.AnnAssign(
                        target=ast.Name(id=name) | ast.Attribute(attr=name),
                        annotation=ast.Name(id="Database"),
                    )
                ):
                    names = [name]
                case ast.Assign(targets=targets, value=value) if _last_name(value) in PLAIN_NAMES:
                    names = [_last_name(target) for target in targets]
                case ast.withitem(
                    context_expr=ast.Call(func=ast.Name(id="open_metadata" | "open_place")),
                    optional_vars=ast.Name(id=name),
                ):
                    names = [name]
                case _:
                    continue
            found += [f"{module}: {name}" for name in names if name not in NAMES]
    return found
