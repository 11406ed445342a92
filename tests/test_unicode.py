"""The Unicode tables say what the ``tokenizers`` library says; the rules beside them suffice."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tokenizers import normalizers

from exporter.bundle import unicode

PROBED = (*range(0, 0x20000, unicode.BLOCK), 0xE0000)  # where characters are, but for ideographs


class Tables:
    """``unicode.bin``, read as its description says."""

    def __init__(self, content: bytes) -> None:
        self._numbers = self._read(content[content.index(b"\0") + 1 :])
        self.values: list[int] = []
        for _ in range(next(self._numbers)):
            length, value = next(self._numbers), next(self._numbers)
            self.values += [value] * length
        self.ranks: dict[int, int] = {}
        end = 0
        for _ in range(next(self._numbers)):
            gap, length, rank = (next(self._numbers) for _ in range(3))
            self.ranks |= dict.fromkeys(range(end + gap, end + gap + length), rank)
            end += gap + length
        self.lower = {at: self._points() for at in self._places()}
        self.parts: dict[int, list[int]] = {}
        self.composed: dict[tuple[int, int], int] = {}
        for at in self._places():
            composes = next(self._numbers)
            self.parts[at] = self._points()
            if composes:
                self.composed[self.parts[at][0], self.parts[at][1]] = at
        assert next(self._numbers, None) is None

    @staticmethod
    def _read(content: bytes) -> Iterator[int]:
        value = shift = 0
        for byte in content:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                yield value
                value = shift = 0

    def _places(self) -> Iterator[int]:
        at = 0
        for _ in range(next(self._numbers)):
            at += next(self._numbers)
            yield at

    def _points(self) -> list[int]:
        return [next(self._numbers) for _ in range(next(self._numbers))]

    def decomposed(self, text: str) -> list[int]:
        found = [part for c in text for part in self._whole(ord(c))]
        start = 0
        for end in range(len(found) + 1):
            if end == len(found) or not self.ranks.get(found[end]):
                found[start:end] = sorted(found[start:end], key=lambda p: self.ranks.get(p, 0))
                start = end + 1
        return found

    def _whole(self, point: int) -> list[int]:
        if point in unicode.HANGUL:
            place = point - 0xAC00
            parts = [0x1100 + place // 588, 0x1161 + place % 588 // 28, 0x11A7 + place % 28]
            return parts[: 2 if place % 28 == 0 else 3]
        if point not in self.parts:
            return [point]
        return [whole for part in self.parts[point] for whole in self._whole(part)]

    def composed_of(self, text: str) -> str:
        found: list[int] = []
        starter, last = -1, 0
        for point in self.decomposed(text):
            rank = self.ranks.get(point, 0)
            pair = None
            if starter >= 0 and (last < rank or (last == 0 and starter == len(found) - 1)):
                pair = self._pair(found[starter], point)
            if pair is not None:
                found[starter] = pair
                continue
            if rank == 0:
                starter = len(found)
            last = rank
            found.append(point)
        return "".join(map(chr, found))

    def _pair(self, first: int, second: int) -> int | None:
        if 0 <= first - 0x1100 < 19 and 0 <= second - 0x1161 < 21:
            return 0xAC00 + ((first - 0x1100) * 21 + second - 0x1161) * 28
        if first in unicode.HANGUL and (first - 0xAC00) % 28 == 0 and 0 < second - 0x11A7 < 28:
            return first + second - 0x11A7
        return self.composed.get((first, second))

    def clusters(self, text: str) -> Iterator[str]:
        cluster = ""
        for c in text:
            if cluster and not self._joins(cluster, c):
                yield cluster
                cluster = ""
            cluster += c
        if cluster:
            yield cluster

    def _joins(self, cluster: str, c: str) -> bool:
        before, after = (self.values[ord(x)] & 15 for x in (cluster[-1], c))
        if before == 1 or after == 1:
            return cluster[-1] + c == "\r\n"
        if after in (2, 3, 4) or before == 5:
            return True
        if (before, after) in {(6, 6), (6, 7), (6, 9), (6, 10), (7, 7), (7, 8), (8, 8), (9, 7),
                               (9, 8), (10, 8)}:  # fmt: skip
            return True
        kinds = "".join("xCLE"[self.values[ord(x)] >> 4 & 3] for x in cluster)
        body = kinds.rstrip("LE")
        if self.values[ord(c)] >> 4 & 3 == 1 and body.endswith("C") and "L" in kinds[len(body) :]:
            return True
        if before == 4 and after == 11:
            rest = cluster[:-1]
            while rest and self.values[ord(rest[-1])] & 15 == 2:
                rest = rest[:-1]
            return bool(rest) and self.values[ord(rest[-1])] & 15 == 11
        return False


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables(unicode.FILE.read_bytes())


def texts(count: int) -> Iterator[str]:
    """Of marks, jamo, Indic letters, pictographs and whatever else there is, by turns."""
    pools = (
        [0x61, 0xE9, 0x300, 0x301, 0x323, 0x327, 0x334, 0x345, 0x34F, 0x5B0, 0x64B, 0x1E69, 0x600],
        [0x1100, 0x1161, 0x11A8, 0xAC00, 0xAC01, 0x301, 0x20],
        [0x915, 0x937, 0x94D, 0x93C, 0x200D, 0x903, 0x9CD, 0x995, 0x301, 0xA9],
        [0xA9, 0x200D, 0xFE0F, 0x2764, 0x1F468, 0x1F3FB, 0x301, 0x1F1E6, 0x0D, 0x0A, 0x903],
        [p for p in range(0x3000) if p],
        [*range(0x3000, 0xD800), *range(0xE000, 0x20000)],
    )
    random.seed(5)
    for i in range(count):
        yield "".join(map(chr, random.choices(pools[i % len(pools)], k=random.randint(1, 12))))


def test_tables_cover_everything_and_say_what_the_library_says(tables: Tables) -> None:
    assert len(tables.values) == unicode.LAST + 1
    for start in PROBED:
        block = [chr(c) for c in range(start, start + unicode.BLOCK) if not 0xD800 <= c < 0xE000]
        assert [tables.values[ord(c)] for c in block] == unicode._values(block), hex(start)


@pytest.mark.full
def test_the_file_is_what_is_made_today() -> None:
    assert unicode.make() == unicode.FILE.read_bytes()


def test_lower_case_is_that_of_the_library(tables: Tables) -> None:
    for block in unicode._blocks():
        text = "".join(block)
        found = "".join("".join(map(chr, tables.lower.get(ord(c), [ord(c)]))) for c in text)
        assert found == normalizers.Lowercase().normalize_str(text)


def test_composition_is_that_of_the_library(tables: Tables) -> None:
    for text in texts(6000):
        assert "".join(map(chr, tables.decomposed(text))) == normalizers.NFD().normalize_str(text)
        assert tables.composed_of(text) == normalizers.NFC().normalize_str(text), ascii(text)
    points = {*tables.parts, *tables.ranks, *tables.composed.values(), *unicode.HANGUL}
    for point in points:
        text = f"a{chr(point)}b"
        assert tables.composed_of(text) == normalizers.NFC().normalize_str(text), ascii(text)


def test_clusters_are_those_of_the_library(tables: Tables) -> None:
    """As far as it tells: a small cluster is one mark, a larger one as many as characters."""
    count = unicode._counting()
    for text in texts(6000):
        expected = 0
        for cluster in tables.clusters(text):
            begins = cluster[0] not in "\n\0"
            small = len(cluster.encode()) < 6 and begins
            expected += 1 if small else len(cluster)
        assert len(count.normalize_str(text)) == expected, ascii(text)
