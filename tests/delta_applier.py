"""Applies a delta by docs/updates.md alone: nothing of the exporter is imported here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

Record = dict[str, Any]
MOST_INDEX_BYTES, MOST_WINDOW_BYTES = 8 << 20, 8 << 20


def apply_delta(delta: Path, old: Path, target: Path) -> None:
    """Make the new package in a folder that is not there; raises ValueError for what is wrong."""
    content = delta.read_bytes()
    size = int.from_bytes(content[8:16], "little")
    check(content[:8] == b"4STDELT1", "no delta")
    index = json.loads(unpacked(content[16 : 16 + size], MOST_INDEX_BYTES))
    check(digest((old / "manifest.json").read_bytes()) == index["old_sha256"], "another base")
    check(index["files"][0]["sha256"] == index["new_sha256"], "another manifest")
    listed = files_of(old / "manifest.json")
    stored, at = [], 16 + size
    for piece in index["pieces"]:
        stored.append(content[at : (at := at + piece["stored_bytes"])])
    check(at == len(content), "other bytes than its pieces have")

    def old_bytes(part: Record) -> bytes:
        path = index["old_files"][part["number"]]
        whole: bytes = (old / path).read_bytes()
        check(path.startswith("manifest.") or digest(whole) == listed[path], f"{path}: changed")
        return whole[part["offset"] :][: part["bytes"]]

    def piece_bytes(number: int) -> bytes:
        piece = index["pieces"][number]
        base = old_bytes(piece["base"]) if "base" in piece else b""
        data = decoded(piece, stored[number], base)
        check(digest(data) == piece["sha256"], f"piece {number}: changed")
        return data

    for file in index["files"]:
        parts = (
            old_bytes(part) if part["source"] == "old" else piece_bytes(part["number"])
            for part in file["parts"]
        )
        put(target, file["path"], b"".join(parts), file["sha256"])
    made = {file["path"] for file in index["files"]}
    for path, expected in files_of(target / "manifest.json").items():
        if path not in made:
            put(target, path, (old / path).read_bytes(), expected)


def decoded(piece: Record, stored: bytes, base: bytes) -> bytes:
    """The bytes of a piece."""
    if piece["coding"] == "raw":
        return stored
    if piece["coding"] == "patch":
        return unpacked(stored, piece["bytes"], base)
    data = unpacked(stored, piece["bytes"])
    if piece["coding"] == "zstd":
        return data
    gathered, stride = np.frombuffer(data, np.uint8), piece.get("stride", 1)
    places = np.concatenate([np.arange(k, len(gathered), stride) for k in range(stride)])
    change = np.empty_like(gathered)
    change[places] = gathered
    return (change + np.frombuffer(base, np.uint8)).tobytes()


def unpacked(frame: bytes, most_bytes: int, prefix: bytes = b"") -> bytes:
    """What is in a frame of zstd."""
    known = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    reader = zstandard.ZstdDecompressor(
        dict_data=known if prefix else None, max_window_size=MOST_WINDOW_BYTES
    ).stream_reader(frame)
    return b"".join(iter(lambda: reader.read(1 << 16), b""))[:most_bytes]


def files_of(manifest: Path) -> dict[str, str]:
    """Digests of the files that a manifest lists."""
    raw = json.loads(manifest.read_text("utf-8"))
    entries = [*raw["files"], *(file for graph in raw["graphs"] for file in graph["files"])]
    return {entry["path"]: entry["sha256"] for entry in entries}


def put(folder: Path, path: str, data: bytes, expected: str) -> None:
    check(digest(data) == expected, f"{path}: changed")
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
