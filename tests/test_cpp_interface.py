"""The C interface, called from Python: the same events and the same bytes as Python's loop."""

from __future__ import annotations

import ctypes
import json
import random
import shutil
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import (
    POINTER,
    byref,
    c_char_p,
    c_double,
    c_float,
    c_int32,
    c_int64,
    c_size_t,
    c_uint8,
    c_uint64,
    c_void_p,
)
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Tokens

from exporter import backends
from exporter.build.pipeline import Built, build
from exporter.drawing.loop import Conditioned, Event, Image, Request, Step, generate
from exporter.drawing.text import PromptCut
from exporter.drawing.vectors import HARD_PROMPTS
from exporter.errors import InputError
from exporter.files.read import file_digest
from exporter.network.cut import Ends
from exporter.package.manifest import Guidance
from exporter.recipe.recipe import Recipe, TinyFiles
from exporter.runtime.package import open_package
from tests.conftest import SHAPES, edit_json, needs, seal
from tests.test_web import POOLS, real_t5

ERROR_BYTES = 2000
OK, CHECK_FAILED, INPUT, STOPPED = range(4)
CONDITIONED, STEP, PICTURE = 1, 2, 3
PROMPTS = ("two red circles left of a blue square", "a green triangle")


class CRequest(ctypes.Structure):
    _fields_ = [
        ("prompt", c_char_p), ("seed", c_uint64), ("image", POINTER(c_uint8)),
        ("strength", c_double), ("negative", c_char_p),
    ]  # fmt: skip


class CEvent(ctypes.Structure):
    _fields_ = [
        ("kind", c_int32), ("request", c_int32), ("step", c_int32), ("steps", c_int32),
        ("prompts", c_int32), ("width_px", c_int32), ("height_px", c_int32),
        ("has_preview", c_int32), ("sigma", c_double), ("latent", POINTER(c_float)),
        ("latent_shape", c_int64 * 4), ("pixels", POINTER(c_uint8)), ("remarks", c_char_p),
        ("own", c_void_p),
    ]  # fmt: skip


class CInfo(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p), ("backend", c_char_p), ("scheme", c_char_p), ("width_px", c_int32),
        ("height_px", c_int32), ("steps", c_int32), ("takes_image", c_int32),
        ("takes_negative", c_int32), ("sizes", c_char_p),
    ]  # fmt: skip


HANDLER = ctypes.CFUNCTYPE(ctypes.c_int, POINTER(CEvent), c_void_p)


@dataclass
class Seen:
    """An event, copied."""

    kind: int
    request: int
    step: int
    steps: int
    prompts: int
    sigma: float
    remarks: str
    latent: np.ndarray | None = None
    pixels: np.ndarray | None = None
    preview: np.ndarray | None = None


@dataclass
class Native:
    """The library, and a player of it."""

    library: Any
    player: Any = None
    error: Any = field(default_factory=lambda: ctypes.create_string_buffer(ERROR_BYTES))

    def open(self, folder: Path, device: str | None = None, keeps: bool = False) -> Native:
        name = device.encode() if device else None
        place = str(folder).encode()
        opened = self.library.fourstep_open(place, name, 0, keeps, self.error, ERROR_BYTES)
        return Native(self.library, c_void_p(opened), self.error)

    @property
    def said(self) -> str:
        return str(self.error.value.decode())

    def close(self) -> None:
        self.library.fourstep_free(self.player)

    def draw(
        self,
        requests: Sequence[Request],
        previews: bool = False,
        watch: Callable[[Seen], object] = lambda seen: None,
    ) -> tuple[int, list[Seen]]:
        """The status and what happened; ``watch`` ends the drawing by anything but None."""
        seen: list[Seen] = []

        def handle(event: Any, user: Any) -> int:
            seen.append(self._seen(event, previews))
            return 0 if watch(seen[-1]) is None else 1

        asked = (CRequest * len(requests))(*map(_request, requests))
        status = self.library.fourstep_draw(
            self.player, asked, len(requests), HANDLER(handle), None, self.error, ERROR_BYTES
        )
        return status, seen

    def _seen(self, event: Any, previews: bool) -> Seen:
        e = event.contents
        seen = Seen(e.kind, e.request, e.step, e.steps, e.prompts, e.sigma, e.remarks.decode())
        if e.latent:
            seen.latent = np.ctypeslib.as_array(e.latent, tuple(e.latent_shape)).copy()
        if e.pixels:
            seen.pixels = np.ctypeslib.as_array(e.pixels, (e.height_px, e.width_px, 3)).copy()
        if previews and e.kind == STEP and e.has_preview:
            seen.preview = self._preview(event)
        return seen

    def _preview(self, event: Any) -> np.ndarray:
        width, height = c_int32(), c_int32()
        show = self.library.fourstep_preview
        assert show(event, None, 0, byref(width), byref(height), None, 0) == OK
        found = np.empty((height.value, width.value, 3), np.uint8)
        place = found.ctypes.data_as(POINTER(c_uint8))
        assert show(event, place, found.nbytes - 1, None, None, self.error, ERROR_BYTES) == INPUT
        assert self.said == f"the preview takes {found.nbytes} bytes, and there are " \
                            f"{found.nbytes - 1}"  # fmt: skip
        assert show(event, place, found.nbytes, None, None, self.error, ERROR_BYTES) == OK
        return found

    def ids(self, tokenizer: str, prompt: str, room: int = 512) -> list[int]:
        found, count = (c_int32 * room)(), c_size_t(room)
        status = self.library.fourstep_ids(
            self.player, tokenizer.encode(), prompt.encode(), found, byref(count), self.error,
            ERROR_BYTES,
        )  # fmt: skip
        if status != OK:
            raise InputError(self.said)
        return found[: count.value]


def _request(request: Request) -> CRequest:
    image = request.image
    pixels = image.ctypes.data_as(POINTER(c_uint8)) if isinstance(image, np.ndarray) else None
    negative = None if request.negative is None else request.negative.encode()
    return CRequest(
        request.prompt.encode(), request.seed % (1 << 64), pixels, request.strength, negative
    )


@pytest.fixture(scope="session")
def native(cpp_project: Path) -> Native:
    library = ctypes.CDLL(str(cpp_project / "build" / "libfourstep.so"))
    library.fourstep_open.restype = c_void_p
    library.fourstep_draw.restype = c_int32
    return Native(library)


@pytest.fixture(scope="module")
def player(native: Native, shapes_packages: dict[str, Built]) -> Any:
    opened = native.open(shapes_packages["openvino-int4"].path, keeps=True)
    yield opened
    opened.close()


def seen_by_python(package: Path, requests: Sequence[Request]) -> list[Seen]:
    """What Python's loop shows of the same requests."""
    return [_as_seen(event) for event in generate(open_package(package).player(), requests)]


def _as_seen(event: Event) -> Seen:
    if isinstance(event, Conditioned):
        return Seen(CONDITIONED, 0, 0, 0, event.prompts, 0.0, "")
    if isinstance(event, Image):
        return Seen(PICTURE, event.index, 0, 0, 0, 0.0, "", event.latent, event.pixels)
    assert isinstance(event, Step) and event.preview is not None
    return Seen(STEP, event.index, event.step, event.steps, 0, event.sigma, "", event.latent,
                preview=event.preview())  # fmt: skip


def same(found: Sequence[Seen], expected: Sequence[Seen]) -> None:
    """The same events, byte for byte; previews of a map of colours within a level."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for name in Seen.__dataclass_fields__:
            one, other = getattr(ours, name), getattr(theirs, name)
            if not isinstance(other, np.ndarray):
                assert one == other, name
            elif name == "preview":
                assert np.abs(one.astype(int) - other).max() <= 1
            else:
                assert one.dtype == other.dtype and np.array_equal(one, other), name


def test_events_and_bytes_are_pythons(player: Native, shapes_packages: dict[str, Built]) -> None:
    """Two prompts, three seeds, a picture to start from, which Python is given too."""
    start = np.random.default_rng(5).integers(0, 256, (128, 128, 3), np.uint8)
    requests = [
        Request(PROMPTS[0], 7),
        Request(PROMPTS[1], 2**64 - 3),
        Request(PROMPTS[0], -3, image=start, strength=0.3),
    ]
    status, found = player.draw(requests, previews=True)
    assert status == OK, player.said
    same(found, seen_by_python(shapes_packages["openvino-int4"].path, requests))
    again, kept = player.draw(requests[:1])
    assert again == OK and np.array_equal(kept[-1].pixels, found[-3].pixels)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rich(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with all that shapes-flash has not: guidance, new noise at every step, graphs in
    parts, previews by a graph."""
    if backends.missing(needs("openvino")):
        pytest.skip("pip install 'fourstep[build,openvino-build]'")
    ends = Ends("full", "full", "tiny")
    cut = replace(tiny_recipe.cut, sigmas=(1.0, 0.75, 0.5, 0.0), image_to_image=True, ends=ends)
    tiny = TinyFiles(str(SHAPES / "vae_tiny"))
    recipe = replace(
        tiny_recipe, cut=cut, mode="renoise", tiny=tiny, t5_parts=2, denoiser_parts=2
    ).with_guidance(Guidance(4.5, None))
    (built,) = build(recipe, tmp_path_factory.mktemp("rich"), ["openvino"], ["int4"])
    return built.path


@pytest.mark.parametrize("keeps", [False, pytest.param(True, marks=pytest.mark.full)])
def test_everything_that_a_manifest_can_say(native: Native, rich: Path, keeps: bool) -> None:
    start = np.random.default_rng(6).integers(0, 256, (48, 64, 3), np.uint8)
    requests = [
        Request("a red circle", 5, negative="blue, blurred"),
        Request("a red circle", 6),
        Request("", 6, negative="", image=start, strength=0.5),
    ]
    opened = native.open(rich, keeps=keeps)
    status, found = opened.draw(requests, previews=True)
    assert status == OK, opened.said
    same(found, seen_by_python(rich, requests))
    shown = [seen.preview for seen in found if seen.kind == STEP]
    assert len(shown) == 3 + 3 + 2 and all(p is not None and p.shape == (48, 64, 3) for p in shown)
    opened.close()


@pytest.mark.full
def test_all_vectors_of_it_hold(cpp_project: Path, rich: Path) -> None:
    done = subprocess.run(
        [cpp_project / "build/fourstep-vectors", rich], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "graph tiny_decoder" in done.stdout and "steps of the schedule" in done.stdout


def test_what_a_package_draws_is_told(player: Native) -> None:
    info = CInfo()
    player.library.fourstep_describe(player.player, byref(info))
    assert (info.name, info.backend, info.scheme) == (b"shapes-flash", b"openvino", b"int4")
    assert (info.width_px, info.height_px, info.steps) == (128, 128, 4)
    assert (info.takes_image, info.takes_negative) == (1, 0)


def test_a_handler_may_end_a_drawing(player: Native) -> None:
    status, found = player.draw([Request(PROMPTS[0])], watch=lambda seen: seen.step == 2 or None)
    assert status == STOPPED and player.said == "stopped"
    assert [seen.step for seen in found] == [0, 1, 2]
    assert player.draw([Request(PROMPTS[0])])[0] == OK


def test_a_drawing_can_be_cancelled_from_another_thread(player: Native) -> None:
    """At many moments, some time after an event; the next drawing is whole again."""
    statuses = []
    for after, wait_s in ((CONDITIONED, 0.0), (STEP, 0.0), (STEP, 0.02), (PICTURE, 0.0)):
        timers: list[threading.Timer] = []

        def watch(
            seen: Seen,
            after: int = after,
            wait_s: float = wait_s,
            timers: list[threading.Timer] = timers,
        ) -> None:
            if seen.kind == after and not timers:
                cancel = player.library.fourstep_cancel
                timers.append(threading.Timer(wait_s, cancel, [player.player]))
                timers[0].start()
                if wait_s == 0:
                    timers[0].join()

        status, found = player.draw([Request(PROMPTS[0])] * 8, watch=watch)
        timers[0].join()
        statuses.append(status)
        assert sum(seen.kind == PICTURE for seen in found) < 8
    assert statuses == [STOPPED] * 4
    status, found = player.draw([Request(PROMPTS[0])])
    assert status == OK and found[-1].kind == PICTURE


@pytest.mark.parametrize(
    "request_",
    [
        Request("a", strength=0.5),
        Request("a", strength=2.0, image=np.zeros((128, 128, 3), np.uint8)),
        Request("a", negative="blue"),
        Request("a" * 100_001),
    ],
    ids=["strength", "too strong", "negative", "too long"],
)
def test_requests_are_refused_as_python_refuses_them(
    player: Native, shapes_packages: dict[str, Built], request_: Request
) -> None:
    status, found = player.draw([request_])
    assert status == INPUT and found == []
    with pytest.raises(InputError) as refused:
        seen_by_python(shapes_packages["openvino-int4"].path, [request_])
    assert str(refused.value).replace(" 2.0:", ":") == player.said


def test_what_cannot_be_opened_is_said(native: Native, tmp_path: Path, player: Native) -> None:
    assert not native.open(tmp_path / "nowhere").player
    assert native.said.endswith("no such folder; name a package that fourstep build wrote")
    assert not native.open(tmp_path).player
    assert native.said == f"{tmp_path}: not a package (no manifest.json)"


def test_a_device_that_is_not_there(native: Native, shapes_packages: dict[str, Built]) -> None:
    assert not native.open(shapes_packages["openvino-int4"].path, "TPU").player
    assert "this machine has no TPU for OpenVINO; choose a device from: CPU" in native.said
    short = ctypes.create_string_buffer(b"x" * 20)
    assert not native.library.fourstep_open(b"nowhere", None, 0, 0, short, 8)
    assert short.value == b"nowhere"


def test_a_prompt_that_is_too_long_is_remarked(
    player: Native, shapes_packages: dict[str, Built]
) -> None:
    _, found = player.draw([Request("red " * 200)], watch=lambda seen: True)
    (conditioned,) = found
    for name, tokens in (("clip_l", 77), ("t5", 32)):
        assert f"{name} reads {tokens} tokens, and the prompt 'red red" in conditioned.remarks
    encode = open_package(shapes_packages["openvino-int4"].path).player().tokenizers["t5"]
    with pytest.warns(PromptCut):
        assert player.ids("t5", "red " * 200) == encode("red " * 200)[0].tolist()


@pytest.fixture(scope="module")
def speller(native: Native, cpp_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A player whose T5 tokenizer has the parts of T5's own, which shapes-flash's has not."""
    folder = tmp_path_factory.mktemp("speller") / "package"
    shutil.copytree(cpp_project / "package", folder)
    file = folder / "tokenizer" / "t5.json"
    shutil.copyfile(real_t5(folder.parent), file)
    raw = json.loads((folder / "manifest.json").read_text("utf-8"))
    raw["text"]["tokenizers"]["t5"] |= {"vocabulary_size": 1 << 20}
    for entry in raw["files"]:
        if entry["path"] == "tokenizer/t5.json":
            entry |= {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    seal(folder, raw)
    opened = native.open(folder)
    assert opened.player, opened.said
    yield opened, folder
    opened.close()


def same_ids(speller: tuple[Native, Path], prompts: Sequence[str]) -> None:
    """The ids of every tokenizer are those of the ``tokenizers`` library, cut and filled up."""
    opened, folder = speller
    for name, entry in open_package(folder).manifest.text.tokenizers.items():
        tokens = Tokens.from_file(str(folder / entry.path))
        tokens.no_padding()
        tokens.no_truncation()
        for prompt, expected in zip(prompts, tokens.encode_batch([*prompts]), strict=True):
            ids = expected.ids
            if len(ids) > entry.tokens:
                ids = [*ids[: entry.tokens - 1], ids[-1]]
            ids = ids + [entry.pad_id] * (entry.tokens - len(ids))
            assert opened.ids(name, prompt) == ids, (name, prompt)


def test_hard_prompts_have_the_ids_of_the_library(speller: tuple[Native, Path]) -> None:
    random.seed(2)
    mixed = ("".join(map(chr, random.choices(POOLS[i % 6], k=1 + i % 14))) for i in range(600))
    prompts = [
        *HARD_PROMPTS,
        *("<x0>", " <x0>  a", "b <x0><x0> c", "x CaF\u00e9 CafE\u0301 y", "!!! it's we'll a!b"),
        *mixed,
        *(f"a{chr(point)}b" for point in range(1, 0x110000, 211) if point >> 11 != 27),
    ]
    same_ids(speller, [prompt for prompt in prompts if "\0" not in prompt])


@pytest.mark.full
def test_every_code_point_has_the_ids_of_the_library(speller: tuple[Native, Path]) -> None:
    for start in range(0, 0x110000, 0x10000):
        points = [p for p in range(max(start, 1), start + 0x10000) if p >> 11 != 27]
        same_ids(speller, [f"a{chr(point)}b" for point in points])


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("normalizer", {"type": "NFKC"}, "a normalizer of the type NFKC, which this runtime does"),
        ("pre_tokenizer", {"type": "Digits"}, "a pre-tokenizer of the type Digits, which this"),
        ("post_processor", {"type": "Own"}, "a post-processor of the type Own, which this runtim"),
        ("model", {"type": "WordPiece"}, "a model of the type WordPiece, which this runtime does"),
        (
            "normalizer",
            {"type": "Replace", "pattern": {"Regex": "(a|b)*"}, "content": ""},
            "the pattern (a|b)*, which this runtime does not know",
        ),
        ("added_tokens", [{"id": 5}], "'content' is missing"),
        ("added_tokens", [{"id": 10**6, "content": "x"}], "has ids up to 1000000 and the manifes"),
    ],
)
def test_parts_that_are_not_known_are_refused(
    native: Native, cpp_project: Path, tmp_path: Path, part: str, value: object, said: str
) -> None:
    """To leave one out would draw another picture."""
    folder = shutil.copytree(cpp_project / "package", tmp_path / "package")
    file = folder / "tokenizer" / "t5.json"
    edit_json(file, **{part: value})
    raw = json.loads((folder / "manifest.json").read_text("utf-8"))
    for entry in raw["files"]:
        if entry["path"] == "tokenizer/t5.json":
            entry |= {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    seal(folder, raw)
    assert not native.open(folder).player
    assert native.said.startswith(str(file)) and said in native.said, native.said


def test_a_graph_alone(native: Native, shapes_packages: dict[str, Built]) -> None:
    """What a loop in another language needs: opened with its settings, run on named tensors."""
    folder = shapes_packages["openvino-int4"].path
    package = open_package(folder)
    graph = package.graph("clip_l")
    found = run_graph(native, folder / graph.entry, graph.session, {"ids": np.full((1, 77), 5)})
    session = package.session("clip_l")
    expected = session({"ids": np.full((1, 77), 5, np.int32)})
    assert {*found} == {*expected}
    for name, value in expected.items():
        assert np.array_equal(found[name], value)
    assert not native.library.fourstep_graph_open(
        b"openvino", str(folder / "none.xml").encode(), None, None, 0, native.error, ERROR_BYTES
    )
    assert "none.xml: OpenVINO cannot open it" in native.said


class CTensor(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p), ("dtype", c_int32), ("axes", c_size_t), ("shape", POINTER(c_int64)),
        ("data", c_void_p),
    ]  # fmt: skip


def run_graph(
    native: Native, entry: Path, session: Mapping[str, str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    library = native.library
    library.fourstep_graph_open.restype = c_void_p
    names = (c_char_p * len(session))(*(name.encode() for name in session))
    values = (c_char_p * len(session))(*(value.encode() for value in session.values()))
    graph = c_void_p(
        library.fourstep_graph_open(
            b"openvino", str(entry).encode(), names, values, len(session), native.error, ERROR_BYTES
        )
    )
    assert graph, native.said
    held = {name: np.ascontiguousarray(value, np.int32) for name, value in inputs.items()}
    tensors = (CTensor * len(held))(
        *(
            CTensor(name.encode(), 1, value.ndim, (c_int64 * value.ndim)(*value.shape),
                    value.ctypes.data)
            for name, value in held.items()
        )
    )  # fmt: skip
    outputs, count = POINTER(CTensor)(), c_size_t()
    status = library.fourstep_graph_run(
        graph, tensors, len(held), byref(outputs), byref(count), native.error, ERROR_BYTES
    )
    assert status == OK, native.said
    found = {}
    for tensor in outputs[: count.value]:
        shape = tuple(tensor.shape[: tensor.axes])
        data = ctypes.cast(tensor.data, POINTER(c_float))
        found[tensor.name.decode()] = np.ctypeslib.as_array(data, shape).copy()
    library.fourstep_graph_close(graph)
    return found
