"""The loop in Swift: its syntax, and what it must not do, where there is no compiler.

``tests/test_swift_built.py`` compiles and runs it where there is one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tree_sitter_swift
from tree_sitter import Language, Node, Parser

from exporter.backends.coreml.session import FUNCTION
from exporter.bundle.target import load_target
from exporter.bundle.write import write_bundle
from exporter.package.consistent import WEIGHTS
from exporter.package.manifest import BASE, Golden, Manifest, SizeEntry
from exporter.runtime.package import open_package
from tests.conftest import ROOT

SWIFT = ROOT / "exporter" / "bundle" / "swift"
CORE = SWIFT / "Sources" / "Fourstep"
FILES = sorted(SWIFT.rglob("*.swift"))
PARSER = Parser(Language(tree_sitter_swift.language()))


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from nodes(child)


def code(file: Path) -> str:
    """A file without its comments."""
    text = file.read_bytes()
    for node in reversed([*nodes(PARSER.parse(text).root_node)]):
        if node.type in ("comment", "multiline_comment"):
            text = text[: node.start_byte] + text[node.end_byte :]
    return text.decode()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_swift(file: Path) -> None:
    tree = PARSER.parse(file.read_bytes())
    wrong = [n for n in nodes(tree.root_node) if n.type == "ERROR" or n.is_missing]
    assert not wrong, f"{file}, line {wrong[0].start_point.row + 1}"


def test_what_is_no_swift_is_found() -> None:
    tree = PARSER.parse(b"func a( { let = }")
    assert any(n.type == "ERROR" or n.is_missing for n in nodes(tree.root_node))


def test_the_core_needs_foundation_alone() -> None:
    """But for digests by CryptoKit where that is there."""
    for file in CORE.glob("*.swift"):
        imports = {*re.findall(r"^import (\w+)", code(file), re.MULTILINE)}
        allowed = {"Foundation", "CryptoKit"} if file.name == "Sha256.swift" else {"Foundation"}
        assert imports <= allowed, file
    digests = code(CORE / "Sha256.swift")
    assert digests.index("#if canImport(CryptoKit)") < digests.index("import CryptoKit")
    engine = (SWIFT / "Sources" / "FourstepCoreML" / "CoreMLEngine.swift").read_text()
    assert engine.startswith("#if canImport(CoreML)\n") and engine.endswith("#endif\n")


@pytest.mark.parametrize(
    "trap",
    [
        r"lowercased\(\)",  # the language's own: with a final sigma
        r"\.rounded\(\)",  # away from zero
        r"fma\(|addingProduct",  # fused
        r"\bNSRegularExpression\b|\bRegex<",  # another Unicode
        r"JSONSerialization|JSONDecoder",  # keys of a vocabulary that compare canonically
    ],
)
def test_traps_of_the_language_are_kept_out_of(trap: str) -> None:
    for file in CORE.glob("*.swift"):
        assert not re.search(trap, code(file)), file


def test_try_stands_left_of_operators() -> None:
    """Swift refuses it on their right; a parser does not."""
    for file in FILES:
        assert not re.search(r"(\?|&&|\|\||==|!=|\+) try\b|\? [^:\n]* : try\b", code(file)), file


def roots(power: int, count: int) -> list[int]:
    """The first 32 bits behind the point of roots of primes."""
    primes = [n for n in range(2, 312) if all(n % k for k in range(2, math.isqrt(n) + 1))]

    def root(value: int) -> int:
        low, high = 0, 1 << 40
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle**power <= value else (low, middle)
        return low

    return [root(prime << 32 * power) & 0xFFFFFFFF for prime in primes[:count]]


def test_constants_of_the_digest_are_the_standards() -> None:
    text = code(CORE / "Sha256.swift")
    found = [int(word.replace("_", ""), 16) for word in re.findall(r"0x([0-9A-F]{4}_\w{4})", text)]
    assert found == [*roots(3, 64), *roots(2, 8)]


def test_every_value_of_the_format_is_known_or_refused() -> None:
    """What runs when, and where inputs come from, as the records of the manifest say."""
    text = (CORE / "Manifest.swift").read_text()
    for name in ("once per prompt", "each step", "twice each step", "once", "for previews",
                 "tokens", "output", "negative output", "latent", "image", "velocity", "start",
                 "preview", "euler", "renoise"):  # fmt: skip
        assert f'"{name}"' in text, name
    assert 'node.find("filter")' in text, "a reader that does not run a filter has to refuse it"


def test_further_sizes_are_read_as_the_format_says() -> None:
    """Every field of a size and of its pictures; settings by the names that the exporter writes."""
    sizes = (CORE / "Sizes.swift").read_text() + (CORE / "Manifest.swift").read_text()
    of_sizes = (field.name for record in (SizeEntry, Golden) for field in fields(record))
    unread = {"image", "unquantized", "unquantized_psnr_db", "negative_prompt"}  # not a vector's
    for name in {*of_sizes} - unread:
        assert f'"{name}"' in sizes, name
    engine = (SWIFT / "Sources" / "FourstepCoreML" / "CoreMLEngine.swift").read_text()
    for setting in (BASE, WEIGHTS, FUNCTION):
        assert f'graph.session["{setting}"]' in engine, setting


def test_a_bundle_has_what_its_package_description_names(
    tiny_package: Path, tmp_path: Path
) -> None:
    package = open_package(tiny_package)
    manifest: Manifest = package.manifest
    target = replace(load_target("swift"), backends=(manifest.backend,))
    write_bundle(package, target, tmp_path / "out")
    described = (tmp_path / "out" / "Package.swift").read_text()
    for kind, name in re.findall(r'\.(\w*[tT]arget)\(\s*name: "([\w-]+)"', described):
        folder = "Tests" if kind == "testTarget" else "Sources"
        assert [*(tmp_path / "out" / folder / name).glob("*.swift")], name
    assert (tmp_path / "out/Sources/Fourstep/unicode.bin").stat().st_size > 10_000
    assert (tmp_path / "out/package/manifest.json").is_file()
