"""Hub ids: a build looks into the cache alone; ``fetch`` fills it, here from a small hub."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from exporter.checkpoint.component import COMPONENTS
from exporter.checkpoint.fetch import fetch
from exporter.checkpoint.hub import files_of
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.cli import main
from exporter.errors import InputError
from exporter.network.assemble import components_of
from tests.conftest import ROOT, SMALL

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ID = "someone/tiny"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
CHUNK_BYTES = 1 << 16  # that the library writes at once; its own are 10 MB
Asked = tuple[str, str, int]  # method, path, first byte


@dataclass
class Hub:
    """What a hub serves, and what it was asked.

    Attributes:
        files: by their names in the repository.
        refused: status and error code in place of files, or of everything with ``everything``.
        drops: how often a connection ends in the middle of ``WEIGHTS``.
        etag: in place of the digest of a file.
    """

    files: dict[str, bytes]
    refused: tuple[int, str] | None = None
    everything: bool = False
    drops: int = 0
    damaged: bool = False
    etag: str = ""
    asked: list[Asked] = field(default_factory=list)

    def got(self, name: str) -> list[int]:
        """The first bytes of the requests for a file."""
        return [start for method, path, start in self.asked if method == "GET" and name in path]


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path, start))
            is_file = "/resolve/" in path
            if not path.removeprefix("/api/models").startswith(f"/{ID}"):
                self.refuse(404, "RepoNotFound")
            elif hub.refused and (hub.everything or is_file):
                self.refuse(*hub.refused)
            elif "/revision/" in path and path.rpartition("/")[2] not in ("main", "v1", COMMIT):
                self.refuse(404, "RevisionNotFound")
            elif is_file:
                self.send_file(path.partition(f"/resolve/{COMMIT}/")[2], start)
            elif "/tree/" in path:
                self.send_json([entry(name, content) for name, content in hub.files.items()])
            else:
                siblings = [{"rfilename": name} for name in hub.files]
                self.send_json({"id": ID, "sha": COMMIT, "private": False, "siblings": siblings})

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def send_file(self, name: str, start: int) -> None:
            content = hub.files[name]
            self.send_response(206 if start else 200)
            self.send_header("ETag", f'"{hub.etag or hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.end_headers()
            if self.command == "HEAD":
                return
            part = content[start:]
            if name == WEIGHTS and hub.damaged:
                part = bytes(len(part))
            if name == WEIGHTS and hub.drops:
                hub.drops -= 1
                part = part[: len(part) // 2] if start == 0 else b""
                self.close_connection = True
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}


@pytest.fixture
def address(tiny_folder: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Hub, str]]:
    """A hub that serves the tiny checkpoint, and files that nobody needs."""
    names = [f for f in sorted(tiny_folder.rglob("*")) if f.is_file()]
    files = {f.relative_to(tiny_folder).as_posix(): f.read_bytes() for f in names}
    files |= dict.fromkeys(
        ("README.md", "whole.safetensors", "vae/x.bin", "text_encoder/model.fp16.safetensors"),
        b"not needed",
    )
    hub = Hub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says: the only hub here is the test's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(address: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The same, as this process's hub, with a cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address[1])
    template = f"{address[1]}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield address[0]


def silent(name: str, done: int, size_bytes: int) -> None:
    """Shows nothing."""


def fetched(revision: str | None = None, variant: str | None = None) -> Path:
    return fetch(ID, tuple(COMPONENTS), revision, variant, silent)


def test_what_is_fetched_is_the_checkpoint(
    hub: Hub, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = fetch(ID, tuple(COMPONENTS), None, None, lambda *line: seen.append(line))
    names = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert names == {n for n in hub.files if hub.files[n] != b"not needed"}
    sizes = {name: size for name, _, size in seen}
    assert sizes == {n: len(hub.files[n]) for n in names} and seen[-1][1] == seen[-1][2]

    def forbidden(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    found = open_checkpoint(ID)  # as a build does
    assert found.folder == folder and found.digest == tiny.digest
    assert open_checkpoint(ID, revision=COMMIT).digest == tiny.digest
    assert open_checkpoint(str(folder)).digest == tiny.digest


def test_a_second_fetch_downloads_nothing(hub: Hub) -> None:
    fetched()
    hub.asked.clear()
    fetched("v1")
    assert not hub.got("/resolve/")
    assert open_checkpoint(ID, revision="v1").components


@pytest.mark.parametrize("again", ["same command", "within"])
def test_a_connection_that_ends_in_the_middle(hub: Hub, tiny: Checkpoint, again: str) -> None:
    half = len(hub.files[WEIGHTS]) // 2
    hub.drops = 1 if again == "within" else 1000
    if again == "same command":
        with pytest.raises(
            InputError, match="cannot be reached .*; try again: what is there already"
        ):
            fetched()
        with pytest.raises(InputError, match=f"does not hold that id; .*: fourstep fetch {ID}$"):
            open_checkpoint(ID)
        hub.drops = 0
        hub.asked.clear()
    fetched()
    assert half - CHUNK_BYTES < hub.got(WEIGHTS)[-1] <= half
    assert not list(Path(os.fspath(fetched())).parent.parent.glob("blobs/*.part"))
    assert open_checkpoint(ID).digest == tiny.digest


def test_a_file_that_comes_damaged_is_thrown_away(hub: Hub) -> None:
    hub.damaged = True
    with pytest.raises(InputError, match=f"{WEIGHTS}: came damaged, and is thrown away"):
        fetched()
    hub.damaged = False
    fetched()


@pytest.mark.parametrize(
    ("refused", "everything", "said"),
    [
        ((403, "GatedRepo"), False, "is gated; accept its licence there, then: hf auth login"),
        ((401, "GatedRepo"), False, "is gated; accept its licence there, then: hf auth login"),
        ((401, ""), True, "hf auth login"),
        ((403, ""), True, "hf auth login"),
        ((500, ""), True, "the hub cannot be reached"),
    ],
)
def test_a_hub_that_refuses(
    hub: Hub, refused: tuple[int, str], everything: bool, said: str
) -> None:
    hub.refused, hub.everything = refused, everything
    with pytest.raises(InputError, match=said) as caught:
        fetched()
    assert str(caught.value).startswith(f"{ID}: ") and "\n" not in str(caught.value)


def test_what_is_not_there(hub: Hub, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="has no revision 'v9'"):
        fetched("v9")
    with pytest.raises(InputError, match="unknown variant 'fp8'; known: bf16"):
        hub.files["vae/diffusion_pytorch_model.bf16.safetensors"] = hub.files.pop(
            "vae/diffusion_pytorch_model.safetensors"
        )
        fetched(variant="fp8")
    with pytest.raises(InputError, match="no such public repository"):
        fetch("someone/else", ("vae",), None, None, silent)
    with pytest.raises(InputError, match="is there already; fetch takes a hub id"):
        fetch(str(tiny_folder), ("vae",), None, None, silent)
    with pytest.raises(InputError, match="no name that a hub repository can have"):
        fetch("a..b/--", ("vae",), None, None, silent)


def test_a_file_that_cannot_be_checked_is_not_fetched(hub: Hub) -> None:
    hub.etag = "not-a-digest"
    with pytest.raises(InputError, match="does not say what .* is, so that it cannot be checked"):
        fetched()
    assert hub.got(WEIGHTS) == []


def test_a_hub_that_nobody_answers_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot be reached \(ConnectError\); try again"):
        fetched()


def test_a_cache_that_is_not_whole(hub: Hub) -> None:
    without_t5 = components_of(replace(SMALL, t5=False))
    fetch(ID, without_t5, None, None, silent)
    assert not hub.got("text_encoder_3") and not hub.got("tokenizer_3")
    open_checkpoint(ID, without_t5)
    with pytest.raises(
        InputError, match=rf"text_encoder_3/.* fetch the rest: fourstep fetch {ID}$"
    ):
        open_checkpoint(ID, components_of(SMALL))
    folder = open_checkpoint(ID, without_t5).folder
    (folder / WEIGHTS).resolve().unlink()  # a link that leads nowhere
    with pytest.raises(InputError, match=f"transformer/.* is missing: .*: fourstep fetch {ID}$"):
        open_checkpoint(ID, without_t5)
    with pytest.raises(InputError, match=f"fourstep fetch {ID} --revision {COMMIT}$"):
        open_checkpoint(str(folder), without_t5)
    fetched()
    open_checkpoint(ID, components_of(SMALL))


def test_only_what_is_needed_is_fetched() -> None:
    components = components_of(replace(SMALL, t5=False))
    needed = [
        "LICENSE.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.fp16.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/config.json",
        "text_encoder_2/model.fp16.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer_2/merges.txt",
    ]
    others = [
        "sd3.5_medium.safetensors",
        "text_encoders/clip_g.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder_3/model-00001-of-00002.safetensors",
        "tokenizer_3/tokenizer.json",
        "README.md",
    ]
    assert sorted(files_of([*others, *needed], components, "fp16", "x")) == sorted(needed)
    plain = files_of([*others, *needed], components, None, "x")
    assert "transformer/diffusion_pytorch_model.safetensors" in plain
    assert not any("fp16" in name for name in plain if "text_encoder_2" not in name)
    with pytest.raises(InputError, match=r"x: the hub repository has no text_encoder_3; .*--no-t5"):
        files_of(needed, tuple(COMPONENTS), "fp16", "x")
    with pytest.raises(InputError, match="no model_index.json"):
        files_of(others, components, None, "x")


def test_the_command(address: tuple[Hub, str], tmp_path: Path, tiny_folder: Path) -> None:
    """In a process of its own, with the variables that huggingface_hub reads."""
    recipe = tmp_path / "r.toml"
    text = (ROOT / "recipes" / "shapes-flash.toml").read_text("utf-8")
    text = text.replace("../artifacts/shapes-flash", ID).replace("t5 = true", "t5 = false")
    recipe.write_text(
        text.replace("shapes-flash.prompts.txt", str(ROOT / "recipes/shapes-flash.prompts.txt"))
    )
    told = subprocess.run(
        [sys.executable, "-m", "exporter", "fetch", "--recipe", str(recipe), "--json"],
        env=os.environ
        | {"HF_ENDPOINT": address[1], "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        | {"HF_HUB_OFFLINE": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    made = json.loads(told.stdout)
    assert Path(made["path"]).is_dir() and made["bytes"] > 1e5
    assert f"MB  {WEIGHTS}\n" in told.stderr and "text_encoder_3" not in told.stderr
    assert (Path(made["path"]) / "vae" / "config.json").is_file()


def test_a_command_that_does_not_say_what() -> None:
    result = CliRunner().invoke(main, ["fetch"])
    assert result.exit_code == 2 and "say what to fetch: fourstep fetch owner/name" in result.stderr
    gone = CliRunner().invoke(main, ["fetch", "nowhere/at/all"])
    assert gone.exit_code == 2 and "no such file or folder" in gone.stderr


def test_a_snapshot_is_not_looked_for_in_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda *a: asked.append(a))
    with pytest.raises(InputError, match="fourstep fetch no/body --revision v1 --variant fp16$"):
        open_checkpoint("no/body", revision="v1", variant="fp16")
    assert not asked
