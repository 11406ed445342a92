"""What every backend must do: each graph, in each scheme that it can express, equals torch."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from exporter import backends
from exporter.backends.contract import Backend
from exporter.build.write import emit_graph
from exporter.calibrate.activations import choose
from exporter.calibrate.ranges import choose_all
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.errors import CheckFailed, InputError
from exporter.files.staging import TRIAL_BYTES, staging, writing
from exporter.network.assemble import cut_graphs
from exporter.network.graph import Graph
from exporter.package.manifest import Port
from exporter.package.measures import relative_error
from exporter.program.program import Program
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.everywhere import round_everything, rounds_everything
from exporter.quantize.formats import FORMATS, GROUP_SIZES, Format
from exporter.quantize.nearest import encode
from exporter.quantize.program import Part, QuantizedProgram, quantize, unquantized
from exporter.quantize.rounded import asked, round_inputs
from exporter.quantize.schemes import scheme_names
from tests.conftest import SMALL, needs, random_inputs, scheme_of, slow_ones
from tests.layer_by_layer import layer_by_layer


@pytest.fixture(scope="module", params=backends.names())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend that is installed; another says which pip install would enable it."""
    found = backends.load(request.param)
    if backends.missing(needs(request.param)):
        pytest.skip(f"{request.param}: pip install '{found.to_build.install}'")
    return found


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> list[Program]:
    """All graphs, and both that differ when T5's null tokens are collapsed."""
    plain = [trace(g) for g in cut_graphs(tiny, SMALL)]
    without = [trace(g) for g in cut_graphs(tiny, replace(SMALL, t5=False))]
    return plain + [p for p in without if p.name in ("conditioner", "denoiser")]


EXACT = backends.SessionOptions("float32")


def emit_options(backend: Backend) -> backends.EmitOptions:
    return backends.EmitOptions(backends.default_choices(backend))


def worst_error(
    backend: Backend,
    program: QuantizedProgram,
    read: Callable[[object], torch.Tensor],
    folder: Path,
) -> tuple[float, float]:
    """Largest relative error of an emitted graph's outputs, computed exactly, against torch; and
    what the backend allows. Where inputs are rounded, stretch by stretch."""
    folder.mkdir()
    inputs = random_inputs(program)
    if rounds_everything(program):
        given = {name: value.numpy() for name, value in inputs.items()}
        program = round_everything(program, choose_all(program, read, [given]))
    elif asked(program):
        given = {name: value.numpy() for name, value in inputs.items()}
        program = round_inputs(program, choose(program, read, [given]))
        program, inputs = layer_by_layer(program, read, inputs)
    expected = run(program, read, inputs)
    given = {name: value.numpy() for name, value in inputs.items()}
    emitted = backend.emit(program, read, folder, emit_options(backend))
    found = backend.open_graph(emitted.entry, emitted.session, EXACT)(given)
    assert set(found) == set(expected)
    worst = max(relative_error(found[p], value.numpy()) for p, value in expected.items())
    return worst, emitted.tolerance.graph_relative


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scheme", [*slow_ones(scheme_names()), "int2"])
def test_every_graph_equals_torch(
    backend: Backend,
    programs: list[Program],
    tiny: Checkpoint,
    tmp_path: Path,
    scheme: str,
    symmetric: bool,
) -> None:
    rules, weights = scheme_of(scheme, symmetric), Weights(tiny)
    if not symmetric and rules == scheme_of(scheme):
        return  # no groups in it
    for i, program in enumerate(programs):
        quantized = quantize(program, rules.format_of)
        choices = backends.default_choices(backend)
        if any(backend.refuse(form, choices) for form in quantized.formats.values()):
            continue  # refused before a build starts; see test_package
        error, allowed = worst_error(backend, quantized, weights.read, tmp_path / str(i))
        assert error <= allowed, program.name  # 1e-3 where inputs are rounded, else 1e-4


class Product(torch.nn.Module):
    """One linear layer, wide enough for every group size."""

    def __init__(self) -> None:
        super().__init__()
        self.product = torch.nn.Linear(256, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.product(x)
        return found


@pytest.mark.parametrize("size", [1.0, 1e-6])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("name", ["int4", "int2"])
def test_groups_equal_torch(
    backend: Backend, tmp_path: Path, name: str, group_size: int, symmetric: bool, size: float
) -> None:
    """Of every size, with scales that fp16 holds and with scales that it would lose."""
    with torch.device("meta"):
        module = Product()
    ports = Port("x", (1, 5, 256)), Port("y", (1, 5, 24))
    program = trace(Graph("small", "transformer", module, ports[:1], ports[1:], {}))
    form = Format(name, group_size, symmetric)
    encoded = encode(size * torch.randn(24, 256, generator=torch.Generator().manual_seed(0)), form)
    assert encoded.scale is not None
    assert torch.equal(encoded.scale.half().float(), encoded.scale) == (size == 1)

    def read(source: object) -> torch.Tensor:
        assert isinstance(source, Part)
        value: torch.Tensor = getattr(encoded, source.part)
        return value

    quantized = quantize(program, lambda *_: form)
    error, allowed = worst_error(backend, quantized, read, tmp_path / "small")
    assert error <= allowed


def test_large_activations_stay_exact(
    backend: Backend, programs: list[Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    decoder = unquantized(next(p for p in programs if p.name == "vae_decoder"))
    weights = Weights(tiny)
    latent = {"latent": 30 * torch.randn(decoder.inputs[0].shape)}
    expected = run(decoder, weights.read, latent)["image"].numpy()
    emitted = backend.emit(decoder, weights.read, tmp_path, emit_options(backend))
    session = backend.open_graph(emitted.entry, emitted.session, EXACT)
    found = session({"latent": latent["latent"].numpy()})
    assert np.isfinite(found["image"]).all()
    assert relative_error(found["image"], expected) <= emitted.tolerance.graph_relative


def test_unknown_operators_are_refused_by_name(
    backend: Backend, tiny: Checkpoint, tmp_path: Path
) -> None:
    program = trace(cut_graphs(tiny, SMALL)[0])
    for node in program.nodes():
        if node.target is torch.ops.aten.layer_norm.default:
            node.target = torch.ops.aten.cumsum.default
    quantized = quantize(program, lambda *_: FORMATS["fp32"])
    with pytest.raises(InputError, match=r"clip_l: operator aten\.cumsum\.default has no"):
        backend.emit(quantized, Weights(tiny).read, tmp_path, emit_options(backend))


def test_a_file_that_is_no_graph(
    backend: Backend, programs: list[Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    program = unquantized(programs[0])
    emitted = backend.emit(program, Weights(tiny).read, tmp_path, emit_options(backend))
    for file in emitted.files:
        whole = file.read_bytes()
        file.write_bytes(b"nothing that a runtime knows")
        with pytest.raises(CheckFailed, match="cannot open it"):
            backend.open_graph(emitted.entry, emitted.session, backends.SessionOptions())
        file.write_bytes(whole)


@contextmanager
def files_up_to(limit_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(place: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of so many bytes, where this user may mount one."""
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])  # OpenVINO's constants wait in a smaller file
def test_a_file_that_grows_too_large_is_one_line_and_nothing_is_left(
    backend: Backend, programs: list[Program], tiny: Checkpoint, tmp_path: Path, share: float
) -> None:
    program, read = unquantized(programs[0]), Weights(tiny).read
    emitted = backend.emit(program, read, tmp_path, emit_options(backend))
    largest = max(f.stat().st_size for f in emitted.files)
    message = "package: a file is larger than the place allows; choose another place$"
    with files_up_to(int(share * largest)), pytest.raises(InputError, match=message):  # noqa: SIM117
        with staging(tmp_path / "out" / "package") as folder:
            emit_graph(backend, program, read, folder, emit_options(backend))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9])
def test_a_full_disk_is_one_line_and_nothing_is_left(
    backend: Backend, programs: list[Program], tiny: Checkpoint, tmp_path: Path, share: float
) -> None:
    program, read = unquantized(programs[0]), Weights(tiny).read
    emitted = backend.emit(program, read, tmp_path, emit_options(backend))
    size = sum(f.stat().st_size for f in emitted.files)
    message = "package: the disk is full; free space or choose another place$"
    with small_disk(tmp_path / "disk", int(share * size)) as disk:
        with pytest.raises(InputError, match=message), staging(disk / "package") as folder:
            emit_graph(backend, program, read, folder, emit_options(backend))
        assert list(disk.iterdir()) == []


def test_why_a_library_could_not_write(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if full.exists():
        with pytest.raises(OSError) as found, writing(full):
            raise RuntimeError("iostream error")
        assert found.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="a defect"), writing(tmp_path / "file"):
        raise RuntimeError("a defect")


def test_as_much_is_tried_as_a_library_removed(tmp_path: Path) -> None:
    size = TRIAL_BYTES + 1
    with files_up_to(size), pytest.raises(OSError) as found:  # noqa: SIM117
        with writing(tmp_path / "file", size):
            raise RuntimeError("iostream error")
    assert found.value.errno == errno.EFBIG


def test_a_cache_is_refused_where_nothing_is_compiled(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in backends.names():
        backend = backends.load(name)
        for device in backend.devices:
            options = backends.SessionOptions(device=device, cache=cache)
            if device in backend.caching_devices:
                backends.check_session(name, options)
                cache.rmdir()
                continue
            message = (
                f"^cache: {name} keeps no compiled graphs on {device}; leave it out "
                r"\(backends that take it here: .*openvino\)$"
            )
            with pytest.raises(InputError, match=message):
                backends.check_session(name, options)
            assert not cache.exists()


def test_a_cache_that_cannot_be_kept_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(cache: Path) -> str:
        with pytest.raises(InputError) as found:
            backends.check_session("openvino", backends.SessionOptions(cache=cache))
        return str(found.value)

    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "deeper"):
        assert refused(place) == f"cache {place}: not a folder; choose another"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refused(tmp_path) == f"cache {tmp_path}: cannot be written; choose another folder"
    monkeypatch.setattr(Path, "mkdir", refuse_to_make)
    place = tmp_path / "new"
    assert refused(place) == f"cache {place}: Permission denied; choose another folder"


def refuse_to_make(*_: object, **__: object) -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def no_weights(source: object) -> torch.Tensor:
    raise AssertionError("a program without weights")


class ManyParts(torch.nn.Module):
    """As the denoiser at full depth, which cuts its modulation row into 365 vectors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.split(x.flatten(), 4)
        return parts[0] + parts[399] * parts[7]


def test_a_split_into_hundreds_of_parts(backend: Backend, tmp_path: Path) -> None:
    port, out = Port("x", (1, 1600)), Port("y", (4,))
    program = trace(Graph("many", "transformer", ManyParts(), (port,), (out,), {}))
    error, allowed = worst_error(backend, unquantized(program), no_weights, tmp_path / "many")
    assert error <= allowed
