"""The readers of the C++ runtime under sanitizers, with files and prompts that mean harm."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from exporter.bundle.cpp import unicode_header
from exporter.bundle.target import load_target
from exporter.bundle.unicode import FILE
from exporter.files.differences import differences
from tests.conftest import ROOT

INCLUDE = load_target("cpp").sources / "include"
PROGRAMS = ROOT / "tests" / "cpp"
FLAGS = ("-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
SANITIZERS = "-fsanitize=address,undefined"
ROUNDS = 1000
FUZZ_S = 60
KINDS = {"m": "manifest.json", "s": "golden/noise.safetensors"}


def compiled(place: Path, program: str, compiler: str, *flags: str) -> Path:
    """A program of ``tests/cpp`` with sanitizers, and with the header that a bundle brings."""
    if shutil.which(compiler) is None:
        pytest.skip(f"apt-get install {'clang' if compiler == 'clang++' else compiler}")
    (place / "unicode_data.hpp").write_text(unicode_header(FILE.read_bytes()))
    here = ["-I", str(INCLUDE), "-I", str(place), str(PROGRAMS / f"{program}.cpp")]
    out = ["-fno-sanitize-recover=all", "-pthread", "-o", str(place / program)]
    done = subprocess.run([compiler, *FLAGS, *flags, *here, *out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place / program


def seeds(package: Path, place: Path) -> list[str]:
    """Files to begin with, each behind the letter of its kind."""
    (place / "prompt.txt").write_text("a red circle's 42 caf\u00e9 <pad> <|endoftext|> !", "utf-8")
    found = [f"{kind}:{package / path}" for kind, path in KINDS.items()]
    found += [f"t:{file}" for file in sorted((package / "tokenizer").glob("*.json"))]
    (place / "edits").write_bytes(differences(b"b" * 700 + b"other" + b"b" * 200, b"b" * 1000))
    found.append(f"d:{place / 'edits'}")
    return [*found, f"p:{place / 'prompt.txt'}"]


def tokenizers(package: Path) -> dict[str, str]:
    files = sorted((package / "tokenizer").glob("*.json"))
    return os.environ | {"FOURSTEP_TOKENIZERS": ":".join(map(str, files))}


def test_mutated_files_and_prompts_are_survived(tiny_package: Path, tmp_path: Path) -> None:
    program = compiled(tmp_path, "hostile", "g++", SANITIZERS)
    done = subprocess.run(
        [program, str(ROUNDS), *seeds(tiny_package, tmp_path)],
        env=tokenizers(tiny_package), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr[-3000:]


@pytest.mark.full
def test_the_fuzzer_finds_nothing(tiny_package: Path, tmp_path: Path) -> None:
    """libFuzzer, led by what is covered."""
    flags = ["-O1", "-fsanitize=fuzzer,address,undefined", "-DFOURSTEP_LIBFUZZER"]
    program = compiled(tmp_path, "hostile", "clang++", *flags)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(tiny_package, tmp_path)):
        kind, _, path = seed.partition(":")
        start = bytes(["mtspd".index(kind)])
        (corpus / str(number)).write_bytes(start + Path(path).read_bytes())
    done = subprocess.run(
        [program, corpus, f"-max_total_time={FUZZ_S}", "-timeout=20", "-rss_limit_mb=4000"],
        env=tokenizers(tiny_package), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stderr


@pytest.mark.full
@pytest.mark.parametrize(
    "flags",
    [(SANITIZERS,), ("-fsanitize=thread", "-DFOURSTEP_PORTABLE")],
    ids=["address", "thread"],
)
def test_the_loop_draws_what_was_recorded(
    tiny_package: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Without an engine: each graph gets what was recorded, and the picture is the same."""
    program = compiled(tmp_path, "replay", "g++", *flags)
    done = subprocess.run([program, tiny_package], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == "a red circle\n", done.stderr[-3000:]
