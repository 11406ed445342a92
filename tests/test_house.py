"""The house: imports run downward, no circle, no torch and no vendor where none may be."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# From the ground up: a room imports from itself and from rooms before it.
ROOMS = (
    "quiet",
    "errors",
    "progress",
    "files",
    "package",
    "cache",
    "bom",
    "credentials",
    "trust",
    "drawing",
    "checkpoint",
    "marking",
    "network",
    "program",
    "synth",
    "quantize",
    "calibrate",
    "backends",
    "layouts",
    "recipe",
    "predict",
    "runtime",
    "delivery",
    "build",
    "plan",
    "bench",
    "bundle",
    "report",
    "matrix",
    "cli",
    "plugins",
    "__main__",
)
TOP = {
    *(".ci", ".gitattributes", ".gitignore", "LICENSE", "Makefile", "README.md"),
    *("pyproject.toml", "constraints.txt"),
    *("artifacts", "benchmarks", "docs", "exporter", "recipes", "tests"),
}
LARGEST_BYTES = 8_000_000  # the committed checkpoint's transformer; a clone brings all of it
TORCHLESS = (
    "exporter.package",
    "exporter.cache",
    "exporter.bom",
    "exporter.credentials",
    "exporter.trust",
    "exporter.drawing",
    "exporter.marking",
    "exporter.runtime",
    "exporter.delivery",
    "exporter.report",
)
HEAVY = ("torch", "diffusers", "transformers", "onnx", "coremltools", "nncf")


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    own = ROOT / "exporter" / "plugins" / "optimum"  # a distribution of its own
    files = sorted(f for f in (ROOT / "exporter").rglob("*.py") if own not in f.parents)
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    return {name.removesuffix(".__init__"): file for name, file in zip(names, files, strict=True)}


def statements(tree: ast.AST, inside: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements: with ``inside`` also those of functions and for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        hidden = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if inside or not (hidden or for_types):
            yield from statements(node, inside)


@cache
def imports(module: str, inside: bool) -> frozenset[str]:
    """What a module imports: modules of the project in full, others by their first name."""
    found = set[str]()
    for statement in statements(ast.parse(modules()[module].read_text("utf-8")), inside):
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        else:
            base = statement.module or ""
            names = [f"{base}.{alias.name}" for alias in statement.names]
            names = [name if name in modules() else base for name in names]
        found |= {n if n.startswith("exporter") else n.partition(".")[0] for n in names}
    return frozenset(found - {module})


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in modules()} - {""} == {*ROOMS}


def test_imports_run_downward() -> None:
    upward = [
        f"{module} -> {imported}"
        for module in modules()
        for imported in imports(module, inside=True)
        if imported in modules() and room_of(imported) and room_of(module)
        if ROOMS.index(room_of(imported)) > ROOMS.index(room_of(module))
    ]
    assert not upward


def test_no_circle_even_inside_functions() -> None:
    graph = {m: [i for i in imports(m, inside=True) if i in modules()] for m in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def brings_in(module: str, names: tuple[str, ...]) -> list[str]:
    """Roads from a module to one of ``names`` over imports at the top of modules."""
    found, left, seen = [], [(module, module)], {module}
    while left:
        at, road = left.pop()
        # Importing a module runs the ``__init__`` of every folder above it.
        parts = at.split(".")
        above = {".".join(parts[:i]) for i in range(1, len(parts))}
        for name in imports(at, inside=False) | above:
            if name in names:
                found.append(f"{road} -> {name}")
            elif name in modules() and name not in seen:
                seen.add(name)
                left.append((name, f"{road} -> {name}"))
    return found


DRAWING = [m for m in modules() if m.startswith(TORCHLESS)]
SESSIONS = [m for m in modules() if m.startswith("exporter.backends.") and m.endswith(".session")]


@pytest.mark.parametrize("module", [*DRAWING, *SESSIONS, "exporter.cli"])
def test_drawing_imports_no_torch(module: str) -> None:
    assert brings_in(module, HEAVY) == []


def test_the_road_to_torch_is_seen() -> None:
    """What the test above would find if there were something."""
    assert brings_in("exporter.program.run", ("torch",))
    assert importlib.util.find_spec("torch") is not None


def test_every_folder_says_what_it_is() -> None:
    for folder in {file.parent for file in modules().values()}:
        init = folder / "__init__.py"
        assert init.is_file(), folder
        assert ast.get_docstring(ast.parse(init.read_text("utf-8"))), folder


def test_a_name_is_one_thing() -> None:
    """Of classes; backends have theirs in folders alike, networks their layers in files alike."""
    places: dict[str, list[str]] = {}
    for module, file in modules().items():
        if module.startswith("exporter.network.") or module.count(".") > 2:
            continue
        for statement in ast.parse(file.read_text("utf-8")).body:
            if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                places.setdefault(statement.name, []).append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


# What reads files that others wrote, and the rooms of the one place that may call it.
RAW = {
    "json.load", "json.loads", "tomllib.load", "tomllib.loads", "safe_open", "load_file",
    "Picture.open", "Tokens.from_file", "Tokens.from_str", "Tokens.from_pretrained",
}  # fmt: skip
READERS = "exporter.files."
ALONE = ("exporter.backends.coreml.on_mac",)  # a script of its own, copied into packages
OWN = {  # files of its own
    "exporter.report.page",
    "exporter.backends.coreml",
    "exporter.bench.process",
    "exporter.package.describe",
    "exporter.bundle.cpp",
}


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a module by what is called, as ``json.loads`` or ``file.read_text``."""
    for node in ast.walk(ast.parse(modules()[module].read_text("utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_files_of_others_are_read_in_one_place() -> None:
    raw = [
        f"{module}: {name}"
        for module in modules()
        if not module.startswith(READERS) and module not in ALONE
        for name, _ in calls(module)
        if name in RAW or (name.endswith((".read_text", ".read_bytes")) and module not in OWN)
    ]
    left = {"exporter.backends.coreml.lint", "exporter.backends.coreml.evaluator.program"}
    assert {entry for entry in raw if entry.partition(":")[0] not in left} == set()


def test_nothing_stands_about_that_was_left_by_mistake() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout: git knows what belongs")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    files = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    assert {file.parts[0] for file in files} <= TOP
    sizes = {file: (ROOT / file).stat().st_size for file in files if (ROOT / file).exists()}
    assert {file: size for file, size in sizes.items() if size > LARGEST_BYTES} == {}


def test_written_text_has_the_same_newlines_on_every_system() -> None:
    without = [
        module
        for module in modules()
        for name, call in calls(module)
        if name.endswith(".write_text") and not any(k.arg == "newline" for k in call.keywords)
    ]
    assert without == []
