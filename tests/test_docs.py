"""The README and docs/ are true: commands, code, links, names, rooms and what commands print.

Commands that draw or look at packages are run, on a tiny ONNX package under every package's name,
unless they ask for what that has not got: a device, a cache, the VAE's encoder. The others
(``build``, ``plan``, ``synth``, ``inspect`` of a checkpoint) are parsed, flags and values. What the
README shows of output is compared with what is printed for shapes-flash.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks import tables
from exporter import backends
from exporter.build.pipeline import STATISTICS, Built
from exporter.cli import main
from exporter.quantize.schemes import scheme_names
from exporter.recipe.recipe import DEFAULT_BACKENDS
from exporter.runtime import SigningKey, sign_package
from tests.certificates import issue, key_pem, keys, pem, public_pem
from tests.conftest import ROOT, SHAPES
from tests.test_house import ROOMS

README_LINES = 150
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in tables.pages()}
README = PAGES["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
RUN = ("run", "verify", "sign", "inspect", "bench", "report", "doctor")
NOT_RUN = (
    "--device", "--cache", "--half", "--identity", "--image", "--metric", "--negative", "--recipe",
    "--size", "--watch",
)  # fmt: skip
PLACES = r"`((?:exporter|recipes|benchmarks|tests|docs|artifacts)/[\w./-]*)`"
MADE = re.compile(r"^artifacts/(frontier|fullsize|demo-|shapes-flash/(onnx|openvino|coreml)-)")


def fences(*languages: str) -> list[tuple[str, str]]:
    """Page and text of each fenced block in one of the languages."""
    return [
        (page, found[2])
        for page, text in PAGES.items()
        for found in FENCE.finditer(text)
        if found[1] in languages
    ]


def lines() -> list[tuple[str, str]]:
    """Page and text of each command line that is shown."""
    typed = [
        (page, line.partition(" #")[0].strip())
        for page, block in fences("sh")
        for line in block.splitlines()
    ]
    shown = [
        (page, line.removeprefix("$ "))
        for page, block in fences("console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    return [(page, line) for page, line in [*typed, *shown] if line]


COMMANDS = list(dict.fromkeys(line for _, line in lines() if line.startswith("fourstep ")))
CHEAP = [
    line
    for line in COMMANDS
    if shlex.split(line)[1] in RUN
    and not set(shlex.split(line)) & set(NOT_RUN)
    and not line.endswith("inspect artifacts/shapes-flash")
    and "pkcs11:" not in line
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    """Every command has the arguments and flags that the command line takes."""
    _, name, *arguments = shlex.split(line)
    command = main.commands[name]
    command.make_context(name, arguments, parent=click.Context(main))


def test_every_command_is_shown() -> None:
    assert {shlex.split(line)[1] for line in COMMANDS} == set(main.commands)


def test_every_flag_is_explained() -> None:
    """Each option of ``run`` and ``build`` stands on some page: they are what users type."""
    words = " ".join(PAGES.values())
    for name in ("run", "build"):
        for option in main.commands[name].params:
            assert any(flag in words for flag in (*option.opts, option.name or "")), option.opts


def test_lines_are_of_known_programs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page, line in lines():
        program, *rest = shlex.split(line.removeprefix("sudo "))
        known = ("fourstep", "make", "model_signing", "node", "npm", "openssl", "pip", "python")
        ours = program.startswith(".ci/") and (ROOT / program).is_file()
        assert program in known or ours, (page, line)
        if program == "make":
            assert f"\n{rest[0]}:" in makefile, line


def test_makes_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for page, text in PAGES.items():
        for target in re.findall(r"`make ([\w-]+)`", text):
            assert f"\n{target}:" in makefile, (page, target)


def test_extras_exist() -> None:
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    for page, text in PAGES.items():
        for extras in re.findall(r"(?:fourstep|\.)\[([\w,-]+)\]", text):
            for extra in extras.split(","):
                assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), (page, extra)


@pytest.fixture(scope="module")
def folder(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where commands are typed: the repository's folders, a tiny package under every name."""
    place = tmp_path_factory.mktemp("typed")
    shutil.copytree(ROOT / "recipes", place / "recipes")
    for name in set(re.findall(r"artifacts/shapes-flash/((?:onnx|openvino|coreml)-[\w.-]+)", README
                               + "".join(PAGES.values()))):  # fmt: skip
        shutil.copytree(tiny_package, place / "artifacts/shapes-flash" / name)
    keys_in(place)
    sign_package(place / "artifacts/shapes-flash/onnx-int8", SigningKey(place / "maker.key.pem"))
    certified = SigningKey(place / "key.pem", place / "chain.pem")
    sign_package(place / "artifacts/shapes-flash/onnx-int4", certified)
    return place


def keys_in(place: Path) -> None:
    """The files of keys and certificates that commands name."""
    root = issue("root", authority=True)
    issue("signer", root).write(place)
    (place / "root.pem").write_bytes(pem(root.certificate))
    maker = keys()["ES256"]
    (place / "maker.key.pem").write_bytes(key_pem(maker))
    (place / "maker.pem").write_bytes(public_pem(maker))


@pytest.mark.parametrize("line", CHEAP)
def test_cheap_commands_run(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    if shlex.split(line)[1] == "report":
        monkeypatch.chdir(_few(folder, "onnx-int4", "onnx-int8"))
    result = CliRunner().invoke(main, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output


def _few(folder: Path, *names: str) -> Path:
    """The same folder with some of its packages: a report draws with all of them."""
    place = folder / "few"
    if not place.is_dir():
        shutil.copytree(folder / "recipes", place / "recipes")
        for name in names:
            inside = Path("artifacts/shapes-flash") / name
            shutil.copytree(folder / inside, place / inside)
    return place


def test_what_is_run_is_a_good_part() -> None:
    assert {shlex.split(line)[1] for line in CHEAP} == set(RUN)


def test_the_readme_prints_what_is_printed(
    shapes_packages: dict[str, Built], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The console blocks, typed in order. The package is there, so ``build`` finds it whole."""
    place = tmp_path / "artifacts" / "shapes-flash"
    shutil.copytree(SHAPES, place, ignore=what_make_demo_leaves)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    built = shapes_packages["onnx-int8"].path
    shutil.copytree(built, place / built.name)
    shutil.copytree(built.with_name(STATISTICS), place / STATISTICS)  # measured once
    shutil.copyfile(built.with_name(f"{built.name}.log.json"), place / f"{built.name}.log.json")
    monkeypatch.chdir(tmp_path)
    blocks = [block for page, block in fences("console") if page == "README.md"]
    assert len(blocks) == 2
    for block in blocks:
        for typed in block.removeprefix("$ ").split("\n$ "):
            line, _, expected = typed.partition("\n")
            result = CliRunner().invoke(main, shlex.split(line)[1:])
            assert result.exit_code == 0, result.output
            alike(expected, result.stdout)
    assert (tmp_path / "fourstep.png").is_file()


def what_make_demo_leaves(folder: str, names: list[str]) -> set[str]:
    """What ``make clean`` would remove there, for ``shutil.copytree``."""
    (line,) = (row for row in (ROOT / "Makefile").read_text().splitlines() if "rm -rf .venv" in row)
    patterns = [Path(word).name for word in line.split() if word.startswith("artifacts/*/")]
    assert {"onnx-*", STATISTICS, "*.log.json"} <= set(patterns)
    return shutil.ignore_patterns(*patterns)(folder, names)


FIGURE = re.compile(r"\d+\.\d+e[+-]\d+|inf dB|\d+\.\d+ dB|\d+\.\d+ MB")


def alike(expected: str, found: str) -> None:
    """The same words; figures that depend on the processor's rounding are near each other."""
    assert FIGURE.sub("#", expected).rstrip() == FIGURE.sub("#", found).rstrip()
    for shown, printed in zip(FIGURE.findall(expected), FIGURE.findall(found), strict=True):
        told, got = float(shown.split()[0]), float(printed.split()[0])
        if "e" in shown:
            assert told / 10 < got < told * 10, (shown, printed)
        elif "MB" in shown:
            assert got == pytest.approx(told, abs=0.1), (shown, printed)
        elif min(told, got) < 60:  # above that, a grey level of one pixel is decibels
            assert got == pytest.approx(told, abs=2), (shown, printed)


def test_alike_tells_figures_apart() -> None:
    alike("3 files 1.2e-07 and 51.8 dB", "3 files 3.2e-07 and 51.1 dB")
    for found in ("3 files 1.2e-05 and 51.8 dB", "3 files 1.2e-07 and 40.8 dB", "4 files"):
        with pytest.raises(AssertionError):
            alike("3 files 1.2e-07 and 51.8 dB", found)


@pytest.mark.parametrize(
    ("page", "code"), [f for f in fences("python") if "artifacts/" in f[1]], ids=str
)
def test_python_runs(
    page: str, code: str, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Examples that draw, with a tiny package; tests/test_report.py runs the one that measures."""
    monkeypatch.chdir(tmp_path)
    keys_in(tmp_path)
    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    sign_package(package, SigningKey(tmp_path / "maker.key.pem"))
    names: dict[str, object] = {}
    exec(re.sub(r"artifacts/shapes-flash/[\w-]+", package.as_posix(), code), names)
    assert getattr(names["pixels"], "shape", None) == (48, 64, 3)


@pytest.mark.parametrize(("page", "code"), fences("python"), ids=str)
def test_python_compiles(page: str, code: str) -> None:
    compile(code, page, "exec")


def test_fences_are_of_known_languages() -> None:
    for page, text in PAGES.items():
        found = {f[1] for f in FENCE.finditer(text)}
        assert found <= {"sh", "console", "python", "json", "toml"}, page


def test_data_parses() -> None:
    for _, block in fences("toml"):
        assert tomllib.loads(block)
    for _, block in fences("json"):
        assert json.loads(block)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere() -> None:
    for page, text in PAGES.items():
        for target in LINK.findall(text):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), (page, target)
            assert not anchor or anchor in anchors(file.read_text("utf-8")), (page, target)


def test_places_that_are_named_exist() -> None:
    for page, text in PAGES.items():
        for place in re.findall(PLACES, text):
            assert MADE.match(place) or (ROOT / place).exists(), (page, place)


def test_every_page_is_linked_from_the_readme_and_the_index() -> None:
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert pages - {"README.md"} == set(LINK.findall(PAGES["docs/README.md"])) - {
        "../benchmarks/results"
    }
    for page in pages - {"README.md"}:
        assert f"](docs/{page})" in README, page


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= README_LINES


def test_the_rooms_are_those_of_the_house() -> None:
    block = PAGES["docs/architecture.md"].split("## The rooms")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", block, re.MULTILINE)) == ROOMS


def test_the_table_of_schemes_is_what_backends_can() -> None:
    """A cell is empty where the backend refuses the scheme; ``iOS 18`` where iOS 17 has not got it.

    Backends that the recipes do not name (``reference``) draw nothing for a device.
    """
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.split("## Backends and schemes\n\n")[1].split("\n\n")[0].splitlines()
    ]
    assert set(header[1:-1]) == set(scheme_names())
    shown = {row[0]: dict(zip(header[1:-1], row[1:-1], strict=True)) for row in rows}
    assert set(shown) == set(DEFAULT_BACKENDS)
    for name, cells in shown.items():
        backend = backends.load(name)
        able = set(backends.expressible_schemes(backend, backends.default_choices(backend)))
        assert {scheme for scheme, cell in cells.items() if cell} == able, name
    coreml = backends.load("coreml")
    older = set(backends.expressible_schemes(coreml, {"target": "iOS17"}))
    assert {s for s, cell in shown["coreml"].items() if cell == "yes"} == older


def test_recipes_and_schemes_of_the_device_table_exist() -> None:
    names = re.findall(r"`((?:onnx|openvino|coreml)-[\w-]+)`", README)
    assert len(names) >= 8
    for name in names:
        backend, _, scheme = name.partition("-")
        assert backend in backends.names() and scheme in scheme_names(), name


def test_no_page_is_a_diary() -> None:
    """Dates belong to figures, which stand in tables made from files."""
    for page, text in PAGES.items():
        prose = tables.BLOCK.sub("", text)
        assert not re.search(r"\b20\d\d-\d\d-\d\d\b|older version|used to be", prose), page


def test_docstrings_name_modules_and_files_that_exist() -> None:
    """A module may be followed by a class or function of it, and that by a method."""
    for folder in ("exporter", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text("utf-8")
            for name in re.findall(r"``((?:exporter|benchmarks|docs)[./][\w./]+)``", text):
                assert (ROOT / name).exists() if "/" in name else _is_defined(name), (file, name)


def _is_defined(name: str) -> bool:
    """Whether a dotted name starts with a module or folder of ours, and that names the rest."""
    module, attributes = name, list[str]()
    while module:
        place = ROOT / module.replace(".", "/")
        files = [f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()]
        if files or place.is_dir():
            text = "".join(f.read_text("utf-8") for f in files)
            return all(re.search(rf"\b{attribute}\b", text) for attribute in attributes)
        module, _, attribute = module.rpartition(".")
        attributes.append(attribute)
    return False


def test_a_name_that_is_gone_is_seen() -> None:
    assert _is_defined("exporter.calibrate.weights.Weights.read") and _is_defined(
        "exporter.network"
    )
    assert not _is_defined("exporter.codes.METHODS")
    assert not _is_defined("exporter.calibrate.weights.Wait")
