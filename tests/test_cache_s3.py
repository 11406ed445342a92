"""The shared cache in an object store: moto's server stands for S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from exporter.cache.shared import open_cache
from exporter.cache.store import RemoteStore, open_store
from exporter.cache.url import parse_url
from exporter.cli import main
from exporter.errors import InputError
from exporter.files.read import file_digest
from exporter.package.manifest import FileEntry
from tests.test_matrix import RECIPE
from tests.test_package import digests

ONLY = ("--backend", "onnx", "--scheme", "int4")
KEY, SECRET = "AKIDEXAMPLEOFATEST", "the+secret/key/of/a/test"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a place in a bucket; credentials are in the environment alone."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    store = open_store(parse_url("s3://packages"))
    assert isinstance(store, RemoteStore)
    store.files.makedirs("packages", exist_ok=True)  # moto keeps what an earlier server was given
    yield f"s3://packages/{tmp_path.name}"
    server.stop()


def test_a_build_is_taken_from_s3_and_no_credential_is_told(
    bucket: str,
    tiny_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(RECIPE.format(checkpoint=tiny_folder))
    told = ""
    for place in ("one", "two"):
        with pytest.raises(SystemExit) as ended:
            main(["build", str(recipe), "--out", str(tmp_path / place), "--cache", bucket, *ONLY])
        assert not ended.value.code
        said = capfd.readouterr()
        told += said.out + said.err
        if place == "two":
            assert "trace" not in said.err and "emit" not in said.err
    assert digests(tmp_path / "one/onnx-int4") == digests(tmp_path / "two/onnx-int4")
    for text in (SECRET, KEY):
        assert text not in told and text not in " ".join(sys.argv)
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or text.encode() not in file.read_bytes()
        for name, content in objects(bucket).items():
            assert text not in name and text.encode() not in content


def objects(bucket: str) -> dict[str, bytes]:
    store = open_store(parse_url(bucket))
    assert isinstance(store, RemoteStore)
    names: list[str] = store.files.find(store.root)
    return {name: store.files.cat_file(name) for name in names}


def test_an_object_is_there_whole_or_not_and_a_damaged_one_is_passed_over(
    bucket: str, tmp_path: Path
) -> None:
    lines: list[str] = []
    cache = open_cache(parse_url(bucket), lines.append)
    file = tmp_path / "file"
    file.write_bytes(b"whole" * 1000)
    entry = FileEntry("file", 5000, file_digest(file))
    key = "0" * 64
    assert cache.find("graph", key) is None and not lines
    cache.keep("graph", key, {}, [entry], tmp_path)
    record = cache.find("graph", key)
    assert record is not None and cache.take(record, tmp_path / "taken")
    assert (tmp_path / "taken/file").read_bytes() == file.read_bytes()
    assert isinstance(cache.store, RemoteStore)
    (name,) = (name for name in objects(bucket) if entry.sha256 in name)
    cache.store.files.pipe_file(name, b"other" * 1000)
    assert not cache.take(record, tmp_path / "again")
    assert lines == [f"cache: graph {key[:12]} is passed over: file is damaged"]
    cache.keep("graph", key, {}, [entry], tmp_path)
    assert cache.take(record, tmp_path / "again")


def test_a_denied_store_is_said_once_without_credentials(
    bucket: str,
) -> None:
    lines: list[str] = []
    cache = open_cache(parse_url("s3://no-such-bucket/place"), lines.append)
    assert cache.find("graph", "0" * 64) is None
    cache.keep("graph", "0" * 64, {})
    cache.keep("graph", "1" * 64, {})
    assert len(lines) == 1 and lines[0].startswith("cache: goes on without it: ")
    assert SECRET not in lines[0] and KEY not in lines[0]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"s3fs is not installed: pip install 'fourstep\[s3\]'"):
        open_store(parse_url("s3://packages/place"))
