"""The arithmetic of marks: keys, patterns, what they cost a picture, and what is read again."""

from __future__ import annotations

import io
import itertools
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import marking
from exporter.backends.contract import Session
from exporter.errors import InputError
from exporter.marking import embed, pattern, raster, read
from exporter.marking.key import KeyWarning, MarkKey, key_of_environment, make_key, read_key
from exporter.package.measures import psnr_db
from tests.conftest import ROOT

KEY, OTHER = MarkKey(bytes(range(32))), MarkKey(b"other" + bytes(27))
PAYLOAD = 0x1A2B3C4D
SHAPES = ROOT / "artifacts/shapes-flash/demo.png"  # three pictures side by side
Change = Callable[[np.ndarray], np.ndarray]


def shapes() -> list[np.ndarray]:
    """Three pictures of 128 x 128 px that shapes-flash drew."""
    sheet = np.asarray(Image.open(SHAPES).convert("RGB"))
    gap = sheet.shape[1] - 128
    return [sheet[:, left : left + 128] for left in (0, gap // 2, gap)]


def photographs(size_px: int) -> list[np.ndarray]:
    """Middles of photographs that scikit-image ships."""
    from skimage import data

    found = []
    for picture in (data.astronaut(), data.camera()[..., None].repeat(3, 2), data.chelsea()):
        size_px = min(size_px, *picture.shape[:2])
        top, left = ((side - size_px) // 2 for side in picture.shape[:2])
        found.append(picture[top : top + size_px, left : left + size_px])
    return found


def marked(picture: np.ndarray, key: MarkKey = KEY, payload: int = PAYLOAD) -> np.ndarray:
    levels = embed.marked(picture.astype(np.float64), pattern.tile(key, payload))
    return np.asarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def again(form: str, **options: int) -> Change:
    """Written in a format and read."""

    def change(picture: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, form, **options)
        return np.asarray(Image.open(stream).convert("RGB"))

    return change


def halved(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((width // 2, height // 2)))


def cropped(picture: np.ndarray) -> np.ndarray:
    """70 % of either side, from an odd place."""
    height, width = (round(0.7 * side) for side in picture.shape[:2])
    return picture[17 : 17 + height, 9 : 9 + width]


CHANGES: dict[str, Change] = {
    "png": again("PNG"),
    "jpeg": again("JPEG", quality=70),
    "webp": again("WEBP", quality=60),
    "halved": halved,
    "cropped": cropped,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_mark_is_read_after_each_change(name: str) -> None:
    for picture in (shapes()[0], photographs(512)[0]):
        reading = read.read_mark(CHANGES[name](marked(picture)), KEY)
        assert reading is not None and reading.found
        assert reading.payload == PAYLOAD
        assert reading.scale == pytest.approx(0.5 if name == "halved" else 1.0)
        if name == "cropped":
            assert reading.offset_px == (17, 9)


PAIRS = [("jpeg", "webp"), ("webp", "cropped"), ("cropped", "jpeg"), ("halved", "jpeg")]


@pytest.mark.parametrize("names", PAIRS)
def test_a_mark_is_read_after_two_changes(names: tuple[str, str]) -> None:
    first, second = (CHANGES[name] for name in names)
    for picture in (shapes()[0], photographs(512)[1]):
        reading = read.read_mark(second(first(marked(picture))), KEY)
        assert reading is not None and reading.found
        assert reading.payload == PAYLOAD


def test_any_resize_is_undone_by_who_knows_the_size() -> None:
    picture = marked(shapes()[0])
    squeezed = np.asarray(Image.fromarray(picture).resize((90, 111)))
    reading = read.read_mark(squeezed, KEY, (128, 128))
    assert reading is not None and reading.found
    assert reading.payload == PAYLOAD


def test_every_picture_keeps_42_db() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    black, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    for picture in [*shapes(), *photographs(256), noise, black, white]:
        assert psnr_db(marked(picture), picture) >= 42


def test_without_the_key_nothing_is_found() -> None:
    picture = shapes()[0]
    for seen, key in ((picture, KEY), (marked(picture), OTHER)):
        reading = read.read_mark(seen, key)
        assert reading is not None and not reading.found


@pytest.mark.parametrize("picture", [shapes()[0], photographs(128)[0]], ids=["shapes", "photo"])
def test_chances_are_bounds(picture: np.ndarray) -> None:
    """Over keys, one payload's statistic on an unmarked picture is as rare as is said."""
    chips = read.chips(raster.halved(raster.luma_of(picture), 64, 64, (0, 0)), (0, 0))
    keys = [MarkKey(number.to_bytes(32, "big")) for number in range(400)]
    sums = [float(pattern.tile(key, 7).ravel() @ chips) for key in keys]
    chances = np.array([read.chance_log10(chips, total) for total in sums])
    assert np.std(sums) == pytest.approx(1, abs=0.15)
    assert np.mean(chances < -1) < 0.1
    assert np.mean(chances < -2) < 0.025


def test_a_chance_is_that_of_coins() -> None:
    """Of 16 values of one size all coins agree once in 2^16; of 8 wrong ones, as often as any."""
    values = np.full(16, 0.25)
    for wrong in range(7):
        exact = sum(math.comb(16, some) for some in range(wrong + 1)) / 2**16
        found = read.chance_log10(values, 4 - wrong / 2)
        assert found == pytest.approx(math.log10(exact), abs=1e-6)
    assert read.chance_log10(values, 0.0) == 0


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_a_chance_is_exact_of_any_values(spread: float) -> None:
    """As adding one coin after the other gives it, down to 1 in 10^20."""
    random = np.random.default_rng(4)
    sizes = np.exp(spread * random.normal(size=300))
    steps = np.rint(sizes / np.linalg.norm(sizes) * read.STEPS).clip(0, read.HIGHEST).astype(int)
    most = int(steps.sum())
    chances = np.zeros(2 * most + 1)
    chances[most] = 1
    for step in steps:
        chances = (np.roll(chances, step) + np.roll(chances, -step)) / 2
    norm = float(np.linalg.norm(steps))
    for deviation in (2, 5, 9):
        aim = round(deviation * norm)
        aim -= (aim - most) % 2
        exact = math.log10(chances[most + aim :].sum())
        found = read.chance_log10(steps / read.STEPS, aim / read.STEPS)
        assert found == pytest.approx(exact, abs=1e-3)


def test_decoding_is_exact() -> None:
    random = np.random.default_rng(3)
    table = random.normal(size=(pattern.SYMBOLS, 256))
    best, payload = read.decode(table)

    def total(of: int) -> float:
        return float(table[range(pattern.SYMBOLS), pattern.symbols(of)].sum())

    assert best == pytest.approx(total(payload))
    near = [payload ^ (a << shift) for a in range(256) for shift in (0, 8, 16, 24)]
    near += [payload ^ (a << 8) ^ a for a in range(256)]
    assert best >= max(map(total, [*near, *map(int, random.integers(0, 1 << 32, 2000))])) - 1e-9


def test_a_pattern_is_the_keys_and_the_payloads() -> None:
    tile = pattern.tile(KEY, PAYLOAD)
    assert {*np.unique(tile)} == {-1, 1}
    assert np.array_equal(tile, pattern.tile(MarkKey(bytes(range(32))), PAYLOAD))
    for key, payload in ((OTHER, PAYLOAD), (KEY, PAYLOAD ^ 0x01010101)):
        share = float((pattern.tile(key, payload) == tile).mean())
        assert 0.3 < share < 0.7
    assert 0.6 < float((pattern.tile(KEY, PAYLOAD ^ 1) == tile).mean()) < 0.9  # two symbols
    for y, x in itertools.product(range(1, 31), repeat=2):
        around = ((y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        assert len({int(pattern.SYMBOL_OF_CHIP[place]) for place in around}) == 5


@pytest.mark.parametrize(
    ("given", "payload"),
    [("1a2b3c4d", PAYLOAD), ("0x1A2B3C4D", PAYLOAD), (7, 7), ("7", 7), (2**32 - 1, 2**32 - 1)],
)
def test_payloads(given: object, payload: int) -> None:
    assert pattern.parse_payload(given, "x") == payload


@pytest.mark.parametrize("given", [-1, 2**32, "", "123456789", "xyz", True, 1.0, None, "-1"])
def test_a_payload_out_of_range_is_refused(given: object) -> None:
    with pytest.raises(InputError, match="x = .*32 bits"):
        pattern.parse_payload(given, "x")


def test_a_key_is_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "mark.key"
    key = make_key(file)
    assert read_key(file) == key
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key.secret.hex() not in repr(key)
    assert len(key.id) == 16 and key.id not in key.secret.hex()
    before = file.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        make_key(file)
    assert file.read_bytes() == before
    with pytest.raises(InputError, match="mark.key"):
        make_key(tmp_path / "no" / "mark.key")


def test_a_key_that_others_can_read_is_said(tmp_path: Path) -> None:
    file = tmp_path / "mark.key"
    make_key(file)
    file.chmod(0o644)
    with pytest.warns(KeyWarning, match="others can read"):
        read_key(file)


@pytest.mark.parametrize(
    "text", ["", "ff" * 31, "ff" * 33, "gg" * 32, "ff" * 32 + "\n" + "ff" * 32]
)
def test_what_is_no_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.key"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(InputError, match=r"a\.key: not a key") as caught:
        read_key(file)
    assert not text or text not in str(caught.value)


def test_keys_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such key; make one with: fourstep mark key"):
        read_key(tmp_path / "a.key")
    monkeypatch.delenv("MARK_KEY", raising=False)
    with pytest.raises(InputError, match="no variable MARK_KEY"):
        key_of_environment("MARK_KEY", "[mark] key_env")
    monkeypatch.setenv("MARK_KEY", "ab" * 32)
    assert key_of_environment("MARK_KEY", "x").secret == bytes.fromhex("ab" * 32)
    assert os.environ["MARK_KEY"] not in repr(key_of_environment("MARK_KEY", "x"))


def test_what_a_mark_adds_to_a_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that grows slower, and is held up now and then."""
    clock = {"s": 0.0, "calls": 0}

    def takes(ms: float) -> Session:
        def decode(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            clock["calls"] += 1
            slower = 1 + clock["calls"] / 1000 + (clock["calls"] % 37 == 0)
            clock["s"] += ms * slower / 1000
            return {}

        return decode

    monkeypatch.setattr("time.process_time", lambda: clock["s"])
    times = marking.decode_ms(takes(10.2), takes(10.0), np.zeros(1, np.float32), 100)
    added, error = marking.share(*times)
    assert clock["calls"] == 400
    assert added == pytest.approx(0.02, abs=0.001)
    assert 0 < error < 0.002


def test_too_small_for_a_mark() -> None:
    with pytest.raises(InputError, match="32 x 128 px is too small"):
        pattern.refuse_small(128, 32, "here")
    assert read.read_mark(np.zeros((4, 4, 3), np.uint8), KEY) is None
