"""Tensors that have broken codecs, and payloads as an attacker would make them."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from quantization import AutoRule, Payload, encode
from quantization.payload import _CHECK, _HEAD, _MAGIC, HEADER_BYTES
from quantization.reader import varint
from wire import Schema, Tensors, TensorSpec

Flat = NDArray[np.float32]

TINY: Final = float(np.finfo(np.float32).smallest_subnormal)
NORMAL: Final = float(np.finfo(np.float32).tiny)
LARGEST: Final = float(np.float32(9.9e36))


def schema(*shapes: tuple[int, ...]) -> Schema:
    """Tensors t0, t1, ... of these shapes."""
    return Schema(tuple(TensorSpec(f"t{i}", shape) for i, shape in enumerate(shapes)))


def flat_schema(size: int, copies: int = 1) -> Schema:
    """Tensors t0, t1, ... of so many values each."""
    return schema(*[(size,)] * copies)


def tensors_of(made: Schema, values: Flat) -> Tensors:
    """Tensors of a schema, all filled from the same values, over and over."""
    source = values if values.size else np.zeros(1, np.float32)
    return {
        spec.name: np.resize(source, spec.size).astype(np.float32).reshape(spec.shape)
        for spec in made.tensors
    }


def there(codec: str, values: Flat, seed: int = 0, rule: AutoRule | None = None) -> bytes:
    """One flat tensor as a payload."""
    return encode(codec, {"t0": values}, flat_schema(values.size), seed=seed, rule=rule)


def parameters(payload: bytes, made: Schema) -> list[tuple[float, ...]]:
    """What each tensor's header says, a step first."""
    return Payload(payload, made)._parameters


def scrambled(size: int, salt: int = 1) -> NDArray[np.int64]:
    """Integers in 0..65,535 without a pattern, from integer arithmetic alone."""
    steps = np.arange(size, dtype=np.uint64) * np.uint64(2_654_435_761) + np.uint64(salt * 40_503)
    steps ^= steps >> np.uint64(13)
    steps *= np.uint64(0x9E37_79B9_7F4A_7C15)
    return ((steps >> np.uint64(40)) % np.uint64(65_536)).astype(np.int64)


def bell(size: int, salt: int = 1) -> Flat:
    """Nearly normal values, multiples of 1/8192: sums of four scrambled integers."""
    total = sum(scrambled(size, 4 * salt + part) for part in range(4)) - 131_070
    return (np.asarray(total) / 32_768.0).astype(np.float32)


def heavy(size: int, salt: int = 1) -> Flat:
    """A long tail: cubes."""
    return (bell(size, salt).astype(np.float64) ** 3 / 4.0).astype(np.float32)


def outlier(size: int, where: int = 0, large: float = 1e4) -> Flat:
    """One value that outweighs all others."""
    values = bell(size)
    if size:
        values[where % size] = large
    return values


TROUBLE: Final[dict[str, Callable[[int], Flat]]] = {
    "zero": lambda n: np.zeros(n, np.float32),
    "negative zero": lambda n: np.full(n, -0.0, np.float32),
    "constant": lambda n: np.full(n, 0.3, np.float32),
    "constant, negative": lambda n: np.full(n, -7.0, np.float32),
    "alternating": lambda n: np.resize(np.array([1.0, -1.0], np.float32), n),
    "bell": bell,
    "heavy": heavy,
    "sparse": lambda n: np.where(scrambled(n) < 2_000, bell(n), 0).astype(np.float32),
    "outlier": outlier,
    "outlier, last": lambda n: outlier(n, n - 1, -1e30),
    "exact multiples": lambda n: np.asarray(scrambled(n) % 9 - 4, np.float32) * np.float32(0.5),
    "smallest": lambda n: np.resize(np.array([TINY, 0, -TINY, TINY], np.float32), n),
    "denormal": lambda n: (bell(n).astype(np.float64) * 1e-40).astype(np.float32),
    "denormal outlier": lambda n: outlier(n, 1, 1e-40) * np.float32(1e-30),
    "largest": lambda n: np.resize(np.array([LARGEST, -LARGEST], np.float32), n),
    "all magnitudes": lambda n: (
        np.copysign(1.0, bell(n)) * 2.0 ** (scrambled(n) % 240 - 120.0)
    ).astype(np.float32),
}


# -- forged payloads -------------------------------------------------------------------------------


def sealed(data: bytes) -> bytes:
    """The same with the check that its bytes need, as whoever damages on purpose would do."""
    start, rest = data[: _HEAD.size], data[HEADER_BYTES:]
    return start + _CHECK.pack(zlib.crc32(rest, zlib.crc32(start))) + rest


def zstd(content: bytes, *, declare: bool = True, level: int = 1) -> bytes:
    """A frame without its magic number."""
    made = zstandard.ZstdCompressor(level=level, write_content_size=declare).compress(content)
    return made[len(_MAGIC) :]


@dataclass(frozen=True)
class Body:
    """A block; sizes are those of the strings unless they are forged."""

    mode: int = 0
    squeezed: bytes = b""
    frame: bytes = b""
    plain: bytes = b""
    tail: bytes = b""
    sizes: bytes | None = None

    @property
    def head(self) -> bytes:
        """What the header says of it."""
        if self.mode == 0 and self.sizes is None:
            return b"\x00"
        made = (len(self.squeezed), len(self.frame), len(self.plain))
        sizes = b"".join(map(varint, made)) if self.sizes is None else self.sizes
        return bytes((self.mode,)) + sizes

    @property
    def bytes(self) -> bytes:
        """Itself."""
        return (self.frame or self.squeezed) + self.plain + self.tail


@dataclass(frozen=True)
class Forged:
    """A payload of any content, its check right."""

    made: Schema
    tensors: list[bytes]
    bodies: list[Body]
    asked: int = 0
    seed: bytes = b""
    layout: int = 2
    rest: bytes = b""

    @property
    def data(self) -> bytes:
        """Its bytes."""
        prefix = bytes.fromhex(self.made.digest)[:4]
        asked = self.asked | (128 if self.seed else 0)
        start = struct.pack("<BB4sI", self.layout, asked, prefix, 0)
        head = self.seed + b"".join(self.tensors) + b"".join(body.head for body in self.bodies)
        return sealed(start + head + b"".join(body.bytes for body in self.bodies) + self.rest)

    def having(self, **changes: object) -> "Forged":
        """The same, but."""
        return replace(self, **changes)  # type: ignore[arg-type]


def header(number: int, *values: float, short: bool = False) -> bytes:
    """A tensor's header: a codec's number and its parameters."""
    if short:  # bfloat16: the upper half
        return bytes((number,)) + b"".join(struct.pack("<f", value)[2:] for value in values)
    return bytes((number,)) + b"".join(struct.pack("<f", value) for value in values)


SR: Final = header(4, 0.5, short=True)
ECQ: Final = header(5, 0.5, 0.75)
