"""The codecs: pairs of pure functions between one flat float32 tensor and bytes before zstd.

| name     | id | what                                                              | unbiased |
|----------|----|-------------------------------------------------------------------|----------|
| `raw`    | 1  | float32                                                           | exact    |
| `f16`    | 2  | float16 of the tensor over its largest magnitude                  | nearly   |
| `q8`     | 3  | 8-bit levels between +- the largest magnitude, stochastic         | yes      |
| `ecq_sr` | 4  | step 4 rms, stochastic rounding, entropy coded: the way up        | yes      |
| `ecq`    | 5  | step 2 rms, nearest level, centroids, entropy coded: the way down | no       |

Stochastic rounding: floor(x / step + u), u uniform on [0, 1) (Gupta et al. 2015, section 3.1;
Alistarh et al. 2017, QSGD, eq. 4), so that the mean over devices loses nothing. A larger step costs
variance, which a cohort averages away, and saves bytes: real deltas are heavy-tailed and partly
zero, and the entropy stage lives on that.

`ecq` rounds to the nearest level and so has the smaller error, always below the tensor's own norm:
a contraction, which is what error feedback needs (Karimireddy et al. 2019, assumption A). `ecq_sr`
is none: fed back, its error would grow. Hence one for each direction.

Ids are never reused. `seed` is public; noise comes from `Philox.random_raw`, whose stream NumPy
fixes.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization.symbols import Reader, pack, symbol_bytes_max, unpack
from wire.errors import LocalProtocolError, NotFiniteError, RemoteProtocolError

Flat = NDArray[np.float32]

STEP_RMS_UNBIASED: Final = 4.0
STEP_RMS_NEAREST: Final = 2.0
# Past this a sum of squares or a level times its step could leave float32.
VALUE_ABS_MAX: Final = 1e37
_LEVELS_8: Final = 127
_SMALLEST_STEP: Final = float(np.finfo(np.float32).tiny)


class Noise:
    """Uniform float32 in [0, 1) from a public seed: the same bits on any machine."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed % 2**64)

    def uniform(self, size: int) -> Flat:
        """The next `size` values; 24 bits each, all that float32 can tell apart."""
        raw = np.asarray(self._bits.random_raw(-(-size // 2)), "<u8")
        words = raw.view("<u4")[:size] >> np.uint32(8)
        return words.astype(np.float32) * np.float32(2.0**-24)


@dataclass(frozen=True, slots=True)
class Codec:
    """One codec: `write(values, noise) -> bytes`, `read(reader, size) -> values`.

    `bytes_max(size)` bounds what `write` makes of a tensor of `size` elements. `feeds_back` says
    whether its error may be added to the next message (it is smaller than what was sent).
    """

    name: str
    number: int
    write: Callable[[Flat, Noise], bytes]
    read: Callable[[Reader, int], Flat]
    bytes_max: Callable[[int], int]
    feeds_back: bool


def _float32_bytes(value: float) -> bytes:
    return struct.pack("<f", value)


def _read_scale(reader: Reader) -> np.float32:
    scale = np.float32(reader.array("<f4", 1)[0])
    if not (np.isfinite(scale) and scale >= 0.0):
        raise NotFiniteError(f"a scale is {scale}")
    return scale


def _rms(values: Flat) -> float:
    if values.size == 0:
        return 0.0
    # Not np.dot: its order of summation is the BLAS's own.
    return float(np.sqrt(np.sum(np.square(values, dtype=np.float64)) / values.size))


def _write_raw(values: Flat, _noise: Noise) -> bytes:
    return values.astype("<f4").tobytes()


def _read_raw(reader: Reader, size: int) -> Flat:
    return reader.array("<f4", size).astype(np.float32)


def _write_f16(values: Flat, _noise: Noise) -> bytes:
    scale = np.float32(np.abs(values).max(initial=0.0))
    if scale == 0.0:
        return _float32_bytes(0.0)
    return _float32_bytes(float(scale)) + (values / scale).astype("<f2").tobytes()


def _read_f16(reader: Reader, size: int) -> Flat:
    scale = _read_scale(reader)
    if scale == 0.0:
        return np.zeros(size, np.float32)
    return reader.array("<f2", size).astype(np.float32) * scale


def _write_q8(values: Flat, noise: Noise) -> bytes:
    scale = np.float32(np.abs(values).max(initial=0.0) / _LEVELS_8)
    if scale == 0.0:
        return _float32_bytes(0.0)
    levels = np.floor(values / scale + noise.uniform(values.size))
    levels = np.clip(levels, -_LEVELS_8, _LEVELS_8)
    return _float32_bytes(float(scale)) + bytes(levels.astype(np.int8))


def _read_q8(reader: Reader, size: int) -> Flat:
    scale = _read_scale(reader)
    if scale == 0.0:
        return np.zeros(size, np.float32)
    return reader.array("<i1", size).astype(np.float32) * scale


def _write_ecq_sr(values: Flat, noise: Noise) -> bytes:
    rms = _rms(values)
    if rms == 0.0:
        return pack(np.zeros(values.size, np.int16))
    step = np.float32(max(STEP_RMS_UNBIASED * rms, _SMALLEST_STEP))
    # |x| <= sqrt(n) rms, so a symbol is at most sqrt(n) / 4 + 1: int16 for any model allowed.
    symbols = np.floor(values / step + noise.uniform(values.size)).astype(np.int16)
    packed = pack(symbols)
    return packed if len(packed) == 1 else packed + _float32_bytes(float(step))


def _read_ecq_sr(reader: Reader, size: int) -> Flat:
    symbols = unpack(reader, size)
    if not symbols.any():
        return np.zeros(size, np.float32)
    return symbols.astype(np.float32) * _read_scale(reader)


def _write_ecq(values: Flat, _noise: Noise) -> bytes:
    rms = _rms(values)
    if rms == 0.0:
        return pack(np.zeros(values.size, np.int16))
    step = np.float32(max(STEP_RMS_NEAREST * rms, _SMALLEST_STEP))
    symbols = np.rint(values / step).astype(np.int16)
    packed = pack(symbols)
    if len(packed) == 1:
        # Nothing reaches half a step, as in a tensor of equal values: one level a sign serves.
        symbols = np.sign(values).astype(np.int16)
        packed = pack(symbols)
    ones = np.abs(symbols) == 1
    # The mean of what rounds to +-1 has the least square error (Lloyd 1982, condition 2).
    level = float(np.mean(np.abs(values[ones]), dtype=np.float64)) if ones.any() else float(step)
    return packed + _float32_bytes(float(step)) + _float32_bytes(level)


def _read_ecq(reader: Reader, size: int) -> Flat:
    symbols = unpack(reader, size)
    if not symbols.any():
        return np.zeros(size, np.float32)
    step, level = _read_scale(reader), _read_scale(reader)
    values = symbols.astype(np.float32) * step
    ones = np.abs(symbols.astype(np.int32)) == 1
    values[ones] = symbols[ones].astype(np.float32) * level
    return values


CODECS: Final = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            Codec("raw", 1, _write_raw, _read_raw, lambda n: 4 * n, feeds_back=True),
            Codec("f16", 2, _write_f16, _read_f16, lambda n: 4 + 2 * n, feeds_back=True),
            Codec("q8", 3, _write_q8, _read_q8, lambda n: 4 + n, feeds_back=True),
            Codec(
                "ecq_sr",
                4,
                _write_ecq_sr,
                _read_ecq_sr,
                lambda n: 4 + symbol_bytes_max(n),
                feeds_back=False,
            ),
            Codec(
                "ecq", 5, _write_ecq, _read_ecq, lambda n: 8 + symbol_bytes_max(n), feeds_back=True
            ),
        )
    }
)
CODEC_NAMES: Final = tuple(CODECS)
BY_NUMBER: Final = MappingProxyType({codec.number: codec for codec in CODECS.values()})


def resolve_uplink(name: str) -> str:
    """A codec's name; `auto` is `ecq_sr`."""
    return _known("ecq_sr" if name == "auto" else name)


def resolve_downlink(name: str) -> str:
    """A codec's name; `auto` is `ecq`, whose error can be fed back."""
    return _known("ecq" if name == "auto" else name)


def feeds_back(name: str) -> bool:
    """Whether what this codec leaves out may be put into the next message."""
    return CODECS[_known(name)].feeds_back


def _known(name: str) -> str:
    if name not in CODECS:
        raise LocalProtocolError(f"codec {name!r} is not one of {', '.join(CODECS)}")
    return name


def write_tensor(codec: Codec, name: str, values: Flat, noise: Noise) -> bytes:
    """One tensor's bytes.

    Raises:
        NotFiniteError: NaN, infinity, or a magnitude above 1e37.
    """
    if not (np.abs(values) <= VALUE_ABS_MAX).all():
        raise NotFiniteError(f"{name}: has values that are not finite, or above {VALUE_ABS_MAX:g}")
    return codec.write(values, noise)


def read_tensor(codec: Codec, name: str, reader: Reader, size: int) -> Flat:
    """One tensor's values, flat.

    Raises:
        RemoteProtocolError: malformed or too short.
        NotFiniteError: a value is NaN or infinite.
    """
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            values = codec.read(reader, size)
    except RemoteProtocolError as error:
        raise type(error)(f"{name}: {error}") from error
    if not np.isfinite(values).all():
        raise NotFiniteError(f"{name} has values that are not finite")
    return values
