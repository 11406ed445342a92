"""What tests of the loop ask of more than one language: packages, prompts, pictures, damage."""

from __future__ import annotations

import hashlib
import json
import random
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, normalizers

from exporter.build.pipeline import Built
from exporter.drawing.vectors import HARD_PROMPTS
from exporter.runtime import Image, Request, SessionOptions, Step, generate, open_package
from exporter.runtime.vectors import compare
from tests.conftest import ROOT, SHAPES, previewed, seal

KEPT = ROOT / "tests" / "packages" / "4.0" / "onnx-int8"
PROMPT, NEGATIVE = "two red circles", "a blue square, blurred"
SCHEMES = ("fp16", "fp32", "int4", "int4-a8", "int8", "int8-w8a8", "mixed-4.5")
FORMS = ("clip_l", "clip_g", "t5", "clip, special tokens normalized", "t5, with a map")

HARD = "".join(
    chr(c)
    for c in (*range(0x300), 0x323, 0x345, 0x3A3, 0x915, 0x94D, 0x1100, 0x1161, 0x11A8, 0x200D,
              0x2126, 0x212B, 0x2581, 0x3000, 0xAC00, 0xFB03, 0xFE0F, 0xFEFF, 0x1F1E9, 0x1F3FD,
              0x1F468)
)  # fmt: skip
MAPPED = {
    "\u0301": "!", "e\u0301": "E", "\ufb03": "ffi", "\u3000": " ", "\u00c5": "A", "\ud55c": "han",
    "\u0915": "k", "\u00a0": " ", "\u200d": "", "a\u0323": "q", "\uff71": "\u30a2",
    "\u1100\u1161": "ga",
}  # fmt: skip

# What a tokenizer.json may say that no runtime knows, and what each says of it.
UNKNOWN_PARTS: list[tuple[dict[str, object], str]] = [
    ({"normalizer": {"type": "Nmt"}}, "normalizer.type: 'Nmt' is not known"),
    ({"pre_tokenizer": {"type": "Digits"}}, "pre_tokenizer.type: 'Digits' is not known"),
    ({"post_processor": {"type": "New"}}, "post_processor.type: 'New' is not known"),
    ({"model": {"type": "WordPiece"}}, "model.type: 'WordPiece' is not known"),
    (
        {"normalizer": {"type": "Replace", "pattern": {"Regex": r"\w+"}, "content": ""}},
        r"the expression '\w+' is not known from character 1 on",
    ),
]


def hard_prompts() -> list[str]:
    """300: those of the packages, and random ones of the characters that ports go wrong with."""
    rng = random.Random(1)
    mixed = ["".join(rng.choices(HARD, k=rng.randint(1, 60))) for _ in range(120)]
    marks = ["".join(rng.choices([*"".join(MAPPED), *"ae <"], k=12)) for _ in range(80)]
    return [*HARD_PROMPTS, *mixed, *marks, "<extra_id_5>  x  <extra_id_7>", "a<|endoftext|> b"]


def code_points() -> list[str]:
    """Every code point between two letters."""
    return [f"a{chr(c)}b" for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def hexadecimal(prompts: Sequence[str]) -> str:
    """Prompts as lines that any program reads alike."""
    return "\n".join(prompt.encode().hex() for prompt in prompts) + "\n"


def prompts_that_differ(said: str, file: Path, prompts: Sequence[str]) -> list[str]:
    """The prompts whose ids, a line each, are others than those of the tokenizers library."""
    rows = [json.loads(line) for line in said.splitlines()]
    theirs = Tokenizer.from_file(str(file))
    theirs.no_padding()
    theirs.no_truncation()
    expected = [found.ids for found in theirs.encode_batch(list(prompts))]
    return [p for p, row, ids in zip(prompts, rows, expected, strict=True) if row != ids]


def charsmap(mapped: Mapping[str, str]) -> bytes:
    """A map as SentencePiece compiles it: a double array over bytes, and texts."""
    tree: dict[Any, Any] = {}
    for key, text in mapped.items():
        node = tree
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node["text"] = text
    texts, places, units, taken = bytearray(), {}, {0: 0}, {0}
    for text in mapped.values():
        if text not in places:
            places[text] = len(texts)
            texts += text.encode() + b"\0"

    def put(at: int, node: dict[Any, Any]) -> None:
        bytes_ = [key for key in node if key != "text"]
        base = next(
            b for b in range(256, 1 << 20) if not taken & {b, *(b ^ byte for byte in bytes_)}
        )
        units[at] |= (base ^ at) << 10
        taken.update({base, *(base ^ byte for byte in bytes_)})
        if "text" in node:
            units[at] |= 1 << 8
            units[base] = 1 << 31 | places[node["text"]]
        units.update({base ^ byte: byte for byte in bytes_})
        for byte in bytes_:
            put(base ^ byte, node[byte])

    put(0, tree)
    count = (max(units) // 256 + 1) * 256
    whole = struct.pack(f"<{count}I", *(units.get(i, 0xFF) for i in range(count)))
    return struct.pack("<I", len(whole)) + whole + bytes(texts)


def tokenizer_forms(folder: Path) -> dict[str, Path]:
    """shapes-flash's, and forms that those of other checkpoints have."""
    found = {
        name: SHAPES / place / "tokenizer.json"
        for name, place in (("clip_l", "tokenizer"), ("clip_g", "tokenizer_2"),
                            ("t5", "tokenizer_3"))
    }  # fmt: skip
    clip = json.loads(Tokenizer.from_file(str(found["clip_l"])).to_str())
    for token in clip["added_tokens"]:
        token["normalized"] = True
    clip["model"]["merges"] = [" ".join(pair) for pair in clip["model"]["merges"]]
    found["clip, special tokens normalized"] = folder / "clip.json"
    found["clip, special tokens normalized"].write_text(json.dumps(clip))
    t5 = Tokenizer.from_file(str(found["t5"]))
    t5.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap(MAPPED)), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    extras = [f"<extra_id_{i}>" for i in range(5, 9)]
    t5.add_special_tokens([AddedToken(e, lstrip=True, rstrip=True) for e in extras])
    found["t5, with a map"] = folder / "t5.json"
    t5.save(str(found["t5, with a map"]))
    return found


def assert_all_vectors(said: str, packages: Sequence[Path]) -> None:
    """A language's runner finds as many vectors as ours does, and none that differs."""
    for package in packages:
        opened = open_package(package)
        with opened.player() as player:
            ours = sum(
                len(list(compare(opened.at(size), player.at(size)))) for size in opened.sizes
            )
        (found,) = re.findall(rf"{package}: (\d+) of (\d+) vectors are the same", said)
        tokens = json.loads((package / opened.manifest.golden.tokens).read_text())["prompts"]
        # Python counts all prompts of a tokenizer as one.
        more = len(opened.manifest.text.tokenizers) * (len(tokens) - 1)
        assert int(found[0]) == int(found[1]) == ours + more


def reseal(package: Path, path: str) -> None:
    """Give the manifest a file's new size and digest, and the manifest its own."""
    manifest = json.loads((package / "manifest.json").read_text())
    content = (package / path).read_bytes()
    for file in manifest["files"]:
        if file["path"] == path:
            file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal(package, manifest)


def of_openvino(packages: Mapping[str, Built], scheme: str) -> Path:
    if f"openvino-{scheme}" not in packages:
        pytest.skip("no OpenVINO: pip install 'fourstep[openvino-build]'")
    return packages[f"openvino-{scheme}"].path


def words_of(requests: Sequence[Request], tmp_path: Path) -> list[object]:
    """Requests as the words of ``Draw``."""
    words: list[object] = []
    for request in requests:
        words += ["prompt", request.prompt, "seed", request.seed]
        if request.negative is not None:
            words += ["negative", request.negative]
        if isinstance(request.image, np.ndarray):
            file = tmp_path / "image.rgb"
            file.write_bytes(request.image.tobytes())
            height, width, _ = request.image.shape
            words += ["image", file, width, height, request.strength]
    return words


def same_as_python(
    package: Path, requests: Sequence[Request], folder: Path, options: SessionOptions | None = None
) -> None:
    """The bytes of every latent and picture; previews of a map may be a level apart."""
    with open_package(package).player(options or SessionOptions(), keep=True) as player:
        for event in generate(player, requests):
            if isinstance(event, Step):
                name = f"{event.index}-{event.step}"
                latent = np.fromfile(folder / f"{name}.latent", np.float32)
                assert event.latent is not None
                assert np.array_equal(latent, event.latent.ravel()), name
                if event.preview is None:
                    continue
                shown = np.fromfile(folder / f"{name}.rgb", np.uint8).astype(int)
                assert np.abs(shown - previewed(event).ravel()).max() <= 1, name
            elif isinstance(event, Image):
                pixels = np.fromfile(folder / f"{event.index}.rgb", np.uint8)
                assert np.array_equal(pixels, event.pixels.ravel()), event.index


def damage(package: Path, what: str) -> None:
    """Do something to a copy of a package that has to be found."""
    manifest = json.loads((package / "manifest.json").read_text())
    if what == "digest":
        file = package / manifest["graphs"][0]["files"][0]["path"]
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    elif what == "size":
        file = package / manifest["text"]["tokenizers"]["t5"]["path"]
        file.write_bytes(file.read_bytes() + b" ")
    elif what == "manifest":
        (package / "manifest.json").write_text("{}")
    elif what == "link":
        file = package / "LICENSE"
        file.rename(package.parent / "elsewhere")
        file.symlink_to(package.parent / "elsewhere")
    elif what == "gone":
        (package / "manifest.sha256").unlink()
    else:
        changes: dict[str, Callable[[dict[str, Any]], object]] = {
            "version": lambda m: m.update(format_version="5.0"),
            "mode": lambda m: m["schedule"].update(mode="heun"),
            "sigmas": lambda m: m["schedule"].update(sigmas=[1.0, 0.5, 0.75, 0.0]),
            "path": lambda m: m["files"][0].update(path="../x"),
            "kind": lambda m: m["stages"][0]["inputs"]["ids"].update(kind="sound"),
            "feed": lambda m: m["stages"][0]["inputs"]["ids"].update(name="other"),
            "port": lambda m: m["graphs"][0]["inputs"][0].update(shape=[1 << 20, 1 << 20]),
            "field": lambda m: m.pop("stages"),
            "filter": lambda m: m.update(filter={"threshold": 0.5}),
        }
        changes[what](manifest)
        seal(package, manifest)
