"""A coder written from docs/protocol.md alone, in plain integers, and held against ours byte by byte."""

from __future__ import annotations

import ast
import hashlib
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from qtl_core import entropy
from qtl_core.entropy_file import write_tables
from qtl_core.entropy_tables import Tables
from tests.core.test_entropy import draw, just_long, make_tables, peaked

WHOLE, LOWEST, TOTAL = 1 << 48, 1 << 40, 1 << 14

Table = list[int]


class Page:
    """Tables read from ``entropy.npz``, and the two forms."""

    def __init__(self, path: Path) -> None:
        shapes: dict[str, tuple[int, ...]] = {}
        numbers: dict[str, list[int]] = {}
        with zipfile.ZipFile(path) as archive:
            for name in ("levels", "classes", "codes"):
                data = archive.read(f"{name}.npy")
                (length,) = struct.unpack("<H", data[8:10])
                header = ast.literal_eval(data[10 : 10 + length].decode())
                assert data[:8] == b"\x93NUMPY\x01\x00" and header["descr"] == "<u2"
                numbers[name] = [number for (number,) in struct.iter_unpack("<H", data[10 + length :])]
                shapes[name] = header["shape"]
        (self.levels,) = numbers["levels"]
        self.classes = numbers["classes"]
        self.k, self.channels, _ = shapes["codes"]
        flat, wide = numbers["codes"], self.channels * self.levels
        self.codes = [
            [
                flat[k * wide + c * self.levels : k * wide + (c + 1) * self.levels]
                for c in range(self.channels)
            ]
            for k in range(self.k)
        ]

    def digest(self) -> bytes:
        head = struct.pack("<3I", self.levels, self.k, self.channels)
        numbers = [*self.classes, *(f for k in self.codes for c in k for f in c)]
        return hashlib.sha256(head + struct.pack(f"<{len(numbers)}H", *numbers)).digest()[:8]

    def lanes(self, tokens: int) -> int:
        def h(table: Table) -> int:
            total = 0
            for f in table:
                e = f.bit_length() - 1
                total += f * (256 * (14 - e) - (256 * f // 2**e - 256))
            return total // TOTAL

        rows = [sum(h(table) for table in k) for k in self.codes]
        r = h(self.classes) + sum(f * row for f, row in zip(self.classes, rows, strict=True)) // TOTAL
        m = min(tokens, tokens * r // 2048 // 1024, 512)
        return 0 if m < 16 else -(-tokens // -(-tokens // m))

    def columns(self, token: list[int], chosen: int) -> Iterator[tuple[Table, int]]:
        if self.k > 1:
            yield self.classes, chosen
        yield from zip(self.codes[chosen], token, strict=True)

    # ---------------------------------------------------------------------------------- short

    def encode_short(self, tokens: list[list[int]], classes: list[int]) -> bytes:
        written, low, width = 0, 0, WHOLE  # all bytes so far as one number: a carry is then no matter
        count = 0
        for token, chosen in zip(tokens, classes, strict=True):
            for table, symbol in self.columns(token, chosen):
                part = width // TOTAL
                low, width = low + part * sum(table[:symbol]), part * table[symbol]
                if low >= WHOLE:
                    low, written = low - WHOLE, written + 1
                while width < LOWEST:
                    written, count = written << 8 | low // LOWEST, count + 1
                    low, width = low % LOWEST * 256, width * 256
        d, v = self._end(low, width)
        last = written * WHOLE + v
        return last.to_bytes(count + 6, "big")[: count + 6 - d]

    def decode_short(self, data: bytes, count: int) -> list[list[int]]:
        padded = data + bytes(6)
        taken, offset, width = 6, int.from_bytes(padded[:6], "big"), WHOLE
        tokens = []

        def symbol(table: Table) -> int:
            nonlocal taken, offset, width
            part = width // TOTAL
            slot, start, found = offset // part, 0, 0
            assert slot < TOTAL
            while slot >= start + table[found]:
                start, found = start + table[found], found + 1
            offset, width = offset - part * start, part * table[found]
            while width < LOWEST:
                offset, width, taken = offset << 8 | padded[taken], width << 8, taken + 1
            return found

        for _ in range(count):
            chosen = symbol(self.classes) if self.k > 1 else 0
            tokens.append([symbol(table) for table in self.codes[chosen]])
        low = (int.from_bytes(padded[taken - 6 : taken], "big") - offset) % WHOLE
        d, _ = self._end(low, width)
        assert len(data) == taken - d and offset < 256**d
        return tokens

    def _end(self, low: int, width: int) -> tuple[int, int]:
        for d in (6, 5, 4, 3, 2, 1):
            v = -(-low // 256**d) * 256**d
            if v + 256**d <= low + width:
                return d, v
        raise AssertionError

    # ----------------------------------------------------------------------------------- long

    def decode(self, data: bytes, count: int) -> list[list[int]]:
        if not self.lanes(count):
            return self.decode_short(data, count)
        assert data[0] in (0, 255)
        return (self.decode_short if data[0] else self.decode_long)(data[1:], count)

    def _steps(self, tokens: list[list[int]], classes: list[int], n: int) -> list[list[tuple[int, int]]]:
        steps = []
        for block in range(0, len(tokens), n):
            here = [
                list(self.columns(tokens[t], classes[t])) if t < len(tokens) else None
                for t in range(block, block + n)
            ]
            for column in range(self.channels + (self.k > 1)):
                pairs = [each[column] if each else None for each in here]
                steps.append([(sum(p[0][: p[1]]), p[0][p[1]]) if p else (0, TOTAL) for p in pairs])
        return steps

    def encode_long(self, tokens: list[list[int]], classes: list[int]) -> bytes:
        n = self.lanes(len(tokens))
        x, aside = [1 << 16] * n, []
        for step in reversed(self._steps(tokens, classes, n)):
            words = []
            for lane, (c, f) in enumerate(step):
                if x[lane] >= f << 18:
                    words.append(x[lane] % 65536)
                    x[lane] //= 65536
                x[lane] = x[lane] // f * TOTAL + x[lane] % f + c
            aside.append(words)
        stream = [word for words in reversed(aside) for word in words]
        return struct.pack(f"<{n}I", *x) + struct.pack(f"<{len(stream)}H", *stream)

    def decode_long(self, data: bytes, count: int) -> list[list[int]]:
        n = self.lanes(count)
        x = list(struct.unpack(f"<{n}I", data[: 4 * n]))
        words = iter([word for (word,) in struct.iter_unpack("<H", data[4 * n :])])
        tokens: list[list[int]] = []
        for block in range(0, count, n):
            lanes = min(n, count - block)
            chosen, rows = [0] * lanes, [list[int]() for _ in range(lanes)]
            for column in range(self.channels + (self.k > 1)):
                for lane in range(lanes):
                    of_class = self.k > 1 and column == 0
                    table = self.classes if of_class else self.codes[chosen[lane]][len(rows[lane])]
                    slot, start, found = x[lane] % TOTAL, 0, 0
                    while slot >= start + table[found]:
                        start, found = start + table[found], found + 1
                    x[lane] = table[found] * (x[lane] // TOTAL) + slot - start
                    if of_class:
                        chosen[lane] = found
                    else:
                        rows[lane].append(found)
                    if x[lane] < 65536:
                        x[lane] = x[lane] << 16 | next(words)
            tokens += rows
        assert x == [65536] * n and next(words, None) is None
        return tokens


@pytest.mark.parametrize(
    ("levels", "channels", "classes", "peak"),
    [(2, 5, 1, 1.0), (4, 32, 1, 0.4), (4, 32, 7, 0.4), (5, 3, 2, 0.05), (256, 4, 3, 1.0), (32, 9, 256, 0.2)],
)
def test_short_form(levels: int, channels: int, classes: int, peak: float, tmp_path: Path) -> None:
    tables = make_tables(levels, channels, classes, peak=peak)
    page = _page(tables, tmp_path)
    for tokens in (1, 2, 9, 40):
        codes = draw(tables, tokens, seed=tokens)
        data = entropy.encode(codes, tables)
        assert page.lanes(tokens) == entropy.lanes_for(tokens, tables) == 0
        assert page.encode_short(codes.tolist(), tables.choose(codes).tolist()) == data
        assert page.decode(data, tokens) == codes.tolist()


@pytest.mark.parametrize(("levels", "channels", "classes", "tokens"), [(16, 64, 1, 699), (4, 96, 3, 1500)])
def test_long_form(levels: int, channels: int, classes: int, tokens: int, tmp_path: Path) -> None:
    tables = make_tables(levels, channels, classes, peak=1.5)
    page = _page(tables, tmp_path)
    codes = draw(tables, tokens)
    data = entropy.encode(codes, tables)
    assert page.lanes(tokens) == entropy.lanes_for(tokens, tables) >= 16
    assert tokens % page.lanes(tokens), "the last block should not be full"
    assert b"\0" + page.encode_long(codes.tolist(), tables.choose(codes).tolist()) == data
    assert page.decode(data, tokens) == codes.tolist()


def test_long_form_of_codes_far_likelier_than_expected(tmp_path: Path) -> None:
    tables = peaked(256, 64, 2, 255, 0.5)
    page, tokens = _page(tables, tmp_path), just_long(tables)
    codes = np.full((tokens, 64), 255, np.uint8)
    data = entropy.encode(codes, tables)
    assert page.lanes(tokens) >= 16 > page.lanes(tokens - 1)
    assert b"\xff" + page.encode_short(codes.tolist(), tables.choose(codes).tolist()) == data
    assert page.decode(data, tokens) == codes.tolist()


@pytest.mark.parametrize("any_class", [0, 1, 2])
def test_a_client_may_choose_any_class(any_class: int, tmp_path: Path) -> None:
    tables = make_tables(4, 8, 3)
    codes = draw(tables, 9)
    data = _page(tables, tmp_path).encode_short(codes.tolist(), [any_class] * 9)
    np.testing.assert_array_equal(entropy.decode(data, tables, codes.shape), codes)


def _page(tables: Tables, folder: Path) -> Page:
    write_tables(folder / "entropy.npz", tables)
    page = Page(folder / "entropy.npz")
    assert page.digest() == tables.digest
    return page
