"""The arrows between the folders, read from the imports themselves; and the sizes of things."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cli", "dav", "engine", "fs", "s3")
FRONTENDS = ("dav", "fs", "s3")

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

FILE_LINES_EXCEPTIONS: frozenset[str] = frozenset()

# What a frontend may know of the engine: the façade, the values that cross it, and the HTTP
# server that frontends share. Records are there for the values inside ObjectInfo.
ENGINE_PUBLIC = frozenset(
    {
        "engine",
        "engine.access",
        "engine.changes",
        "engine.config",
        "engine.engine",
        "engine.errors",
        "engine.ids",
        "engine.meta.records",
        "engine.names",
        "engine.paths",
        "engine.times",
        "engine.types",
    }
)
ENGINE_PUBLIC_PACKAGES = ("engine.http",)
# The handle that Engine.open returns, and its streams, have to be named in annotations.
ENGINE_PUBLIC_NAMES = frozenset(
    {
        ("engine.objects", "OpenedObject"),
        ("engine.opened", "BufferStream"),
        ("engine.opened", "ObjectStream"),
        ("engine.opened", "OpenedObject"),
        ("engine.past", "PastPaths"),
        ("engine.staging", "StagedObject"),
    }
)

# HTTP is one way to reach the engine and, behind node/wire, one way to reach a node.
HTTP_USERS = ("engine.http", "engine.node.wire")

PURE = ("engine.data.layout", "engine.data.coding", "engine.data.placement")
IO_MODULES = frozenset({"trio", "os", "socket", "io", "pathlib", "subprocess", "time"})

VAGUE = re.compile(r"\b(utils?|helpers?|managers?|misc|common)\b")


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import anywhere in the file; name is empty for ``import x``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                module = node.module or ""
                # `from engine import errors` imports the module engine.errors.
                if (ROOT / module.replace(".", "/") / f"{alias.name}.py").is_file() or (
                    ROOT / module.replace(".", "/") / alias.name / "__init__.py"
                ).is_file():
                    yield f"{module}.{alias.name}", ""
                else:
                    yield module, alias.name


def is_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def forbidden_imports(module: str, imported: str, name: str) -> str:
    """Return why ``module`` may not import this, or nothing."""
    top = module.partition(".")[0]
    if not is_in(imported, PACKAGES):
        if module in PURE and imported.partition(".")[0] in IO_MODULES:
            return "arithmetic does no I/O"
        return ""
    if top == "engine" and not is_in(imported, ("engine",)):
        return "the engine knows no frontend"
    if top == "engine" and is_in(imported, ("engine.http",)) and not is_in(module, HTTP_USERS):
        return "the engine knows no HTTP"
    if is_in(module, ("engine.http",)) and not is_in(imported, ("engine.http", "engine.errors")):
        return "the HTTP server knows no store"
    if top in FRONTENDS:
        if not is_in(imported, (top, "engine")):
            return "a frontend knows the engine and itself"
        if (
            is_in(imported, ("engine",))
            and imported not in ENGINE_PUBLIC
            and not is_in(imported, ENGINE_PUBLIC_PACKAGES)
            and (imported, name) not in ENGINE_PUBLIC_NAMES
        ):
            return "not a public face of the engine"
    return ""


def test_imports_follow_the_arrows() -> None:
    wrong = [
        f"{module_of(path)} imports {imported} {name}: {why}"
        for path in sources()
        for imported, name in imports_of(path)
        if (why := forbidden_imports(module_of(path), imported, name))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "imported", "name"),
    [
        ("engine.objects", "s3.app", "make_handler"),
        ("engine.meta.kv", "cli.main", ""),
        ("engine.data.reader", "engine.http.message", "Buffer"),
        ("engine.data.coding", "trio", ""),
        ("engine.http.server", "engine.types", "ObjectInfo"),
        ("s3.objects", "engine.store", "Store"),
        ("s3.objects", "cli.main", "app"),
    ],
)
def test_an_import_against_the_arrows_is_found(module: str, imported: str, name: str) -> None:
    assert forbidden_imports(module, imported, name)


def test_only_the_command_reads_the_environment() -> None:
    readers = {"environ", "environb", "getenv", "getenvb"}
    found = []
    for path in sources():
        if module_of(path).startswith("cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (isinstance(node, ast.Attribute) and node.attr in readers) or (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and any(alias.name in readers for alias in node.names)
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n")
        for path in sources()
    }
    long = {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX}
    assert set(long) <= FILE_LINES_EXCEPTIONS, long


def test_functions_do_one_thing() -> None:
    long = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                # The signature and docstring are there to be read, not to be shortened.
                first = node.body[0]
                if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                    first = node.body[min(1, len(node.body) - 1)]
                lines = (node.end_lineno or node.lineno) - first.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines}")
    assert long == []


def test_names_say_what_is_inside() -> None:
    vague = [
        str(path.relative_to(ROOT))
        for path in sources()
        if VAGUE.search(path.stem.replace("_", " ")) or VAGUE.search(path.parent.name)
    ]
    assert vague == []


def test_test_folders_shadow_no_package() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    assert not folders & set(PACKAGES)
