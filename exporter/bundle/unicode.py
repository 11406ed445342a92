"""Unicode as the ``tokenizers`` library has it, in one small file for every language.

A loop in another language has to lower, compose, classify and cluster characters exactly as that
library does, which is of a certain version of Unicode, and a platform's own functions are of
another. So the library is asked about every code point, and ``unicode.bin`` is what it says.
``python -m exporter.bundle.unicode`` writes it anew.

The file is some lines of ASCII for whoever looks into it, a byte 0, and unsigned numbers of 7 bits
a byte, the low bits first, with the high bit set in all but a number's last byte (LEB128). They are
four tables, each a count and so many entries:

1. properties: runs of ``length, value`` that cover 0 to 0x10FFFF in order. Of a value are
   bits 0 to 3 the grapheme class: 0 other, 1 control (CR and LF among them), 2 extend, 3 spacing
   mark, 4 zero width joiner, 5 prepend, 6 to 10 Hangul L, V, T, LV, LVT, 11 pictograph;
   bits 4 and 5 the conjunct class: 0 none, 1 consonant, 2 linker, 3 extend;
   bit 6 ``\\p{L}``, bit 7 ``\\p{N}``, bit 8 ``\\s`` of regular expressions, bit 9 white space.
2. combining classes: runs of ``gap, length, rank`` of code points that are no starters, the gap
   counted from the end of the run before. Ranks are ordered as the classes are, and are above 0.
3. lower case: ``gap, count, code points`` of what is not its own lower case, the gap counted from
   the code point before (the first from 0).
4. canonical decompositions: ``gap, composes, count, code points``, gaps as in 3; what they say is
   decomposed again. With ``composes`` 1 they are two, and compose to this one. Hangul syllables are
   left out: they are by arithmetic, as the Unicode standard says it.

What the library does with them:

- NFD: decompose, then sort each run of ranks above 0, keeping the order of equal ones. NFC: then,
  from a starter on, compose it with each later character that is not blocked (one between them that
  is a starter, or has at least its rank, blocks).
- Lower case is by code point; no final sigma.
- Clusters are the extended grapheme clusters of UAX 29, with its rule GB9c. Only clusters of fewer
  than 6 bytes of UTF-8 differ from their characters in a ``Precompiled`` normalizer, so pairs of
  regional indicators, of 8 bytes, need no class.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

FILE = Path(__file__).with_name("unicode.bin")
HEAD = (
    "Unicode as the tokenizers library has it; made by exporter/bundle/unicode.py, "
    "which says what the numbers are.\n"
)
LAST = 0x10FFFF
SURROGATES = range(0xD800, 0xE000)  # no characters
HANGUL = range(0xAC00, 0xD7A4)
BLOCK = 4096  # code points that are asked about at once
APART = "\n"  # between them: nothing joins, orders or composes over it
CR, LF, ZWJ = "\r", "\n", "\u200d"
MARK, L, V, T = "\u0301", "\u1100", "\u1161", "\u11a8"
PICTOGRAPH, CONSONANT, LINKER = "\u00a9", "\u0915", "\u094d"

OTHER, CONTROL, EXTEND, SPACING, JOINER, PREPEND = range(6)
PICTOGRAPHIC = 11
# Whether V and T join it, and whether it joins an L and a V.
HANGUL_CLASSES = {
    (True, False, True, False): 6,
    (True, True, True, True): 7,
    (False, True, False, True): 8,
    (True, True, True, False): 9,
    (False, True, True, False): 10,
}

Ask = Callable[[str], str]


def make() -> bytes:
    """The whole file."""
    tables = (_properties(), _ranks(), _lower(), _decompositions())
    numbers = [n for table in tables for n in (len(table), *(n for row in table for n in row))]
    return HEAD.encode("ascii") + b"\0" + b"".join(_number(n) for n in numbers)


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def _blocks() -> Iterator[list[str]]:
    """All characters, by blocks."""
    for start in range(0, LAST + 1, BLOCK):
        yield [chr(c) for c in range(start, start + BLOCK) if c not in SURROGATES]


def _asked(ask: Ask, block: Sequence[str], form: str = "{}") -> list[str]:
    """What is answered of each character in its place in a form."""
    if LF in block or CR in block:
        return [ask(form.format(c)) for c in block]
    return ask(APART.join(form.format(c) for c in block)).split(APART)


def _everywhere(ask: Ask) -> dict[str, str]:
    """The answers that differ from what was asked."""
    return {
        c: found
        for block in _blocks()
        for c, found in zip(block, _asked(ask, block), strict=True)
        if c != found
    }


def _lower() -> list[list[int]]:
    lowered = _everywhere(normalizers.Lowercase().normalize_str)
    return _by_gaps([(ord(c), [len(to), *map(ord, to)]) for c, to in lowered.items()])


def _decompositions() -> list[list[int]]:
    decompose, compose = normalizers.NFD().normalize_str, normalizers.NFC().normalize_str
    found: list[tuple[int, list[int]]] = []
    for c, parts in _everywhere(decompose).items():
        if ord(c) in HANGUL:
            continue
        composes = compose(c) == c
        to = [compose(parts[:-1]), parts[-1]] if composes else list(parts)
        assert not composes or len(to[0]) == 1
        found.append((ord(c), [int(composes), len(to), *map(ord, to)]))
    return _by_gaps(found)


def _by_gaps(entries: Sequence[tuple[int, list[int]]]) -> list[list[int]]:
    places = pairwise([0, *(place for place, _ in entries)])
    return [[b - a, *rest] for (a, b), (_, rest) in zip(places, entries, strict=True)]


def _ranks() -> list[list[int]]:
    """Runs of combining ranks: by how many of the marks known so far a mark sorts behind.

    Marks are taken in order; one that sorts neither before nor behind a known one has its class.
    """
    decompose = normalizers.NFD().normalize_str
    marks = [c for block in _blocks() for c in _marks(decompose, block)]
    known: list[str] = []  # one mark of each class, in order
    placed = []
    for mark in marks:
        place, same = _place(decompose, known, mark)
        if not same:
            known.insert(place, mark)
        placed.append((mark, known[place]))
    ranks = {mark: known.index(of) + 1 for mark, of in placed}
    rows, end = [], 0
    for _, run in groupby(enumerate(ranks), lambda pair: (ord(pair[1]) - pair[0], ranks[pair[1]])):
        run_of = [mark for _, mark in run]
        rows.append([ord(run_of[0]) - end, len(run_of), ranks[run_of[0]]])
        end = ord(run_of[-1]) + 1
    return rows


def _marks(decompose: Ask, block: Sequence[str]) -> list[str]:
    """Those of a block that are no starters: a mark of the lowest or of the highest class moves."""
    lowest, highest = "\u0334", "\u0345"
    whole = _asked(decompose, block)
    moved = [_asked(decompose, block, form) for form in (f"{{}}{lowest}", f"{highest}{{}}")]
    return [
        c
        for c, alone, behind, before in zip(block, whole, *moved, strict=True)
        if alone == c and (behind != c + lowest or before != highest + c)
    ]


def _place(decompose: Ask, known: Sequence[str], mark: str) -> tuple[int, bool]:
    """Where a mark belongs among known ones, and whether one of its class is there."""
    for place, other in enumerate(known):
        if decompose(other + mark) == mark + other:
            return place, False
        if decompose(mark + other) == mark + other:
            return place, True
    return len(known), False


def _properties() -> list[list[int]]:
    runs: list[list[int]] = []
    following = 0
    for block in _blocks():
        for c, value in zip(block, _values(block), strict=True):
            if ord(c) != following:  # the surrogates
                runs.append([ord(c) - following, OTHER])
            if runs and runs[-1][1] == value and ord(c) == following:
                runs[-1][0] += 1
            else:
                runs.append([1, value])
            following = ord(c) + 1
    return runs


def _values(block: Sequence[str]) -> list[int]:
    text = "".join(block)
    classes = [r"\p{L}", r"\p{N}", r"\s"]
    left = [{*normalizers.Replace(Regex(form), "").normalize_str(text)} for form in classes]
    left.append({c for piece, _ in pre_tokenizers.WhitespaceSplit().pre_tokenize_str(text)
                 for c in piece})  # fmt: skip
    flags = [sum((c not in kept) << bit for bit, kept in enumerate(left, 6)) for c in block]
    return [a | b for a, b in zip(_cluster_classes(block), flags, strict=True)]


def _cluster_classes(block: Sequence[str]) -> list[int]:
    """Grapheme and conjunct classes, by what joins with what in a ``Precompiled`` normalizer.

    ``_counting`` turns a cluster of fewer than 6 bytes into one mark, and any other into one for
    each character, so that a small one must come out of what is asked if something does not join.
    """
    count = _counting().normalize_str
    inner = [c for c in block if c not in (CR, LF)]

    def counts(form: str) -> dict[str, int]:
        return {c: len(a) for c, a in zip(inner, _asked(count, inner, form), strict=True)}

    joins_a, held = counts("a{}"), counts(f"{{}}{MARK}{MARK}")
    before_a = counts("{}a")
    extends = counts(f"{PICTOGRAPH}{{}}{ZWJ}{PICTOGRAPH}{MARK}")
    joiner = counts(f"{PICTOGRAPH}{{}}{PICTOGRAPH}{MARK}")
    pictograph = counts(f"{PICTOGRAPH}{ZWJ}{{}}{MARK}{MARK}")
    hangul = [
        counts(form) for form in (f"{{}}{V}{MARK}", f"{{}}{T}{MARK}", f"{L}{{}}{MARK}",
                                  f"{V}{{}}{MARK}")
    ]  # fmt: skip
    consonant = counts(f"{{}}{LINKER}{CONSONANT}{MARK}")
    linker = counts(f"{CONSONANT}{{}}{CONSONANT}{MARK}")
    conjunct = counts(f"{CONSONANT}{{}}{LINKER}{CONSONANT}{MARK}")

    def of(c: str) -> int:
        if c in (CR, LF) or held[c] == 2:
            return CONTROL
        if joins_a[c] == 1:
            kind = JOINER if joiner[c] == 4 else EXTEND if extends[c] == 5 else SPACING
            return kind | (2 if linker[c] == 4 else 3 if conjunct[c] == 5 else 0) << 4
        if before_a[c] == 1:
            return PREPEND
        jamo = tuple(found[c] == 3 for found in hangul)
        if len(c.encode()) == 3 and jamo in HANGUL_CLASSES:
            return HANGUL_CLASSES[jamo]
        if pictograph[c] == 5:
            return PICTOGRAPHIC
        return OTHER | (consonant[c] == 4) << 4

    return [of(c) for c in block]


def _counting() -> normalizers.Precompiled:
    """A normalizer that writes "!" for whatever begins with any byte but 0 and a line's end."""
    first = [b for b in range(1, 256) if b != ord(APART) and not 0x80 <= b < 0xC0]
    children, leaf = 256, 512
    units = [0] * 1024  # a double array of one level: label, leaf and offset to what follows
    units[0] = children << 10
    for byte in first:
        place = children ^ byte
        units[place] = byte | 1 << 8 | (place ^ leaf) << 10
    units[leaf] = 1 << 31
    trie = struct.pack(f"<{len(units)}I", *units)
    return normalizers.Precompiled(struct.pack("<I", len(trie)) + trie + b"!\0")


if __name__ == "__main__":
    FILE.write_bytes(make())
