"""A payload read as `docs/protocol.md`, section 10, says, in plain loops.

Written from the page, and sharing nothing with `quantization`: if both agree on the vectors, the
page says enough. Floats are Python's; a product or sum of two float32 that is rounded to float64
and then to float32 is the one that IEEE 754 asks for.
"""

import math
import struct
import zlib
from collections.abc import Callable
from typing import Final

import zstandard

BLOCK: Final = 65_536
WORD: Final = 2**64 - 1

Parameters = dict[str, float]

PARAMETERS: Final = {
    1: "",
    2: "f",
    3: "h",
    4: "h",
    5: "ff",
    6: "h",
    7: "f",
    8: "ff",
    9: "f",
}


def f32(value: float) -> float:
    """Rounded to float32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


class Bytes:
    """Bytes, and how far they have been read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        """The next of them."""
        assert self.at + count <= len(self.data), "truncated"
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        """A size."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


# -- chance ----------------------------------------------------------------------------------------


def philox(seed: int, purpose: int, tensor: int, piece: int, block: int) -> list[int]:
    """Four words of Philox4x64-10."""
    a, b, c, d = block + 1, 0, piece, tensor
    k0, k1 = seed, purpose
    for _ in range(10):
        x, y = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (y >> 64) ^ b ^ k0, y & WORD, (x >> 64) ^ d ^ k1, x & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return [a, b, c, d]


def rotation_signs(seed: int, tensor: int, piece: int, size: int) -> tuple[list[float], ...]:
    """D, D' and D''."""
    first = -(-size // 64)
    words: list[int] = []
    for block in range(-(-(first + 16) // 4)):
        words += philox(seed, 1, tensor, piece, block)

    def signs(start: int, count: int) -> list[float]:
        bits = [(words[start + i // 64] >> (i % 64)) & 1 for i in range(count)]
        return [1.0 if bit else -1.0 for bit in bits]

    return signs(0, size), signs(first, 512), signs(first + 8, 512)


# -- rotation --------------------------------------------------------------------------------------


def chunk_sizes(size: int) -> list[int]:
    """The chunks of a piece."""
    if size < 64:
        return [1] * size
    count = max(1, size // 256)
    return [256] * (count - 1) + [size - 256 * (count - 1)]


def hadamard(values: list[float], start: int, width: int) -> None:
    """H of some values in place."""
    scale = f32(math.sqrt(1.0 / width))
    for i in range(start, start + width):
        values[i] = f32(values[i] * scale)
    half = 1
    while half < width:
        for left in range(start, start + width, 2 * half):
            for i in range(left, left + half):
                a, b = values[i], values[i + half]
                values[i], values[i + half] = f32(a + b), f32(a - b)
        half *= 2


def turn_back(values: list[float], seed: int, tensor: int, piece: int) -> None:
    """A piece's values as they were before they were rotated, in place."""
    if len(values) < 64:
        return
    outer, second, third = rotation_signs(seed, tensor, piece, len(values))
    start = 0
    for size in chunk_sizes(len(values)):
        width = 1
        while 2 * width <= size:
            width *= 2
        if width == size:
            steps: list[list[float] | None] = [None, second, None]
        else:
            steps = [None, third, [], second, None]
        for step in steps:
            if step is None:
                hadamard(values, start, width)
            elif not step:
                hadamard(values, start + size - width, width)
            else:
                for i in range(size):
                    values[start + i] *= step[i]
        start += size
    for i, sign in enumerate(outer):
        values[i] *= sign


# -- symbols ---------------------------------------------------------------------------------------


def bits_of(data: bytes, count: int) -> list[int]:
    """Lowest first."""
    return [(data[i // 8] >> (i % 8)) & 1 for i in range(count)]


def symbols_of(mode: int, squeezed: bytes, plain: bytes, count: int) -> list[int]:
    """A block's symbols."""
    if mode == 0:
        return [0] * count
    if mode == 3:
        return [-1 if bit else 1 for bit in bits_of(plain, count)]
    if mode == 4:
        return list(struct.unpack(f"<{count}b", squeezed))
    if mode == 5:
        low, high = squeezed[:count], squeezed[count:]
        return [(a | b << 8) - (b >> 7 << 16) for a, b in zip(low, high, strict=True)]
    width = mode
    tokens = large = 0
    while tokens + width * large < len(squeezed):
        large += squeezed[tokens] >> 7
        tokens += 1
    assert tokens + width * large == len(squeezed)
    rest = squeezed[tokens:]
    negative = bits_of(plain, tokens - squeezed[:tokens].count(127))
    symbols, at, seen, signs = [0] * count, 0, 0, 0
    for token in squeezed[:tokens]:
        at += token & 127
        if token == 127:
            continue
        magnitude = 1
        if token >> 7:
            magnitude = 2 + rest[seen] + (rest[large + seen] << 8 if width == 2 else 0)
            seen += 1
        symbols[at] = -magnitude if negative[signs] else magnitude
        signs += 1
        at += 1
    return symbols


def scale_of(byte: int, unit: float) -> float:
    """A chunk's scale."""
    number = byte if byte < 8 else (8 + byte % 8) << (byte // 8 - 1)
    return f32(number * unit)


# -- payloads --------------------------------------------------------------------------------------


def blocks_of(sizes: list[int]) -> list[list[tuple[int, int, int]]]:
    """(tensor, number of the piece, values) of each piece of each block."""
    blocks: list[list[tuple[int, int, int]]] = [[]]
    for tensor, size in enumerate(sizes):
        for number in range(-(-size // BLOCK)):
            piece = (tensor, number, min(BLOCK, size - number * BLOCK))
            if sum(each[2] for each in blocks[-1]) + piece[2] > BLOCK:
                blocks.append([])
            blocks[-1].append(piece)
    return blocks if blocks[-1] else []


def value_of(codec: int, own: tuple[float, ...]) -> Callable[[int], float]:
    """What a symbol reads as, before scale and rotation."""
    if codec in (3, 4, 6, 9):
        return lambda k: f32(k * own[0])
    if codec == 5:
        return lambda k: math.copysign(own[1], k) if abs(k) == 1 else f32(k * own[0])
    if codec == 7:
        return float
    return lambda k: float(k) if abs(k) == 1 else f32(k * own[1])


def piece_of(
    codec: int, own: tuple[float, ...], symbols: list[int], scales: bytes, at: tuple[int, int, int]
) -> list[float]:
    """A piece's values from its symbols; `at` is seed, tensor, piece."""
    read = value_of(codec, own)
    values = [read(k) for k in symbols]
    if codec in (7, 8):
        i = 0
        for size, byte in zip(chunk_sizes(len(values)), scales, strict=True):
            scale = scale_of(byte, own[0])
            values[i : i + size] = [f32(v * scale) for v in values[i : i + size]]
            i += size
        turn_back(values, *at)
    return values


def decode(payload: bytes, tensors: list[tuple[str, int]], digest: bytes) -> dict[str, list[float]]:
    """The values of each tensor, given their names and sizes and the schema's digest."""
    data = Bytes(payload)
    layout, asked = data.take(2)
    prefix = data.take(4)
    (check,) = struct.unpack("<I", data.take(4))
    assert layout == 2
    assert prefix == digest[:4]
    assert check == zlib.crc32(payload[:6] + payload[10:])
    seed = struct.unpack("<I", data.take(4))[0] if asked & 128 else 0
    codecs, own = [], []
    for _name, size in tensors:
        codecs.append(data.take(1)[0] if size else 0)
        values = []
        for kind in PARAMETERS[codecs[-1]] if size else "":
            raw = data.take(4) if kind == "f" else b"\x00\x00" + data.take(2)
            values.append(struct.unpack("<f", raw)[0])
        own.append(tuple(values))
    blocks = blocks_of([size for _name, size in tensors])
    heads = []
    for _block in blocks:
        mode = data.take(1)[0]
        heads.append((mode, *((data.varint() for _ in range(3)) if mode else (0, 0, 0))))
    out: list[list[float]] = [[] for _ in tensors]
    for block, (mode, squeezed_bytes, frame_bytes, plain_bytes) in zip(blocks, heads, strict=True):
        if frame_bytes:
            frame = b"\x28\xb5\x2f\xfd" + data.take(frame_bytes)
            squeezed = zstandard.ZstdDecompressor().decompress(frame)
        else:
            squeezed = data.take(squeezed_bytes)
        assert len(squeezed) == squeezed_bytes
        plain = data.take(plain_bytes)
        count = sum(size for tensor, _number, size in block if codecs[tensor] > 2)
        symbols = symbols_of(mode, squeezed, plain, count)
        for tensor, number, size in block:
            codec = codecs[tensor]
            if codec == 1:
                out[tensor] += struct.unpack(f"<{size}f", data.take(4 * size))
            elif codec == 2:
                scale = own[tensor][0]
                out[tensor] += [
                    f32(half * scale) for half in struct.unpack(f"<{size}e", data.take(2 * size))
                ]
            else:
                mine, symbols = symbols[:size], symbols[size:]
                scales = data.take(len(chunk_sizes(size))) if codec in (7, 8) else b""
                out[tensor] += piece_of(codec, own[tensor], mine, scales, (seed, tensor, number))
    assert data.at == len(payload)
    return {name: out[i] for i, (name, _size) in enumerate(tensors)}
