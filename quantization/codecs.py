"""The codecs, each a chain of stages; and the words that name them.

| name        | id | what                                                        | mean is exact |
|-------------|----|-------------------------------------------------------------|---------------|
| `raw`       | 1  | float32                                                     | yes           |
| `f16`       | 2  | float16 of the tensor over its largest magnitude            | nearly        |
| `q8`        | 3  | 127 levels to the largest magnitude, stochastic             | yes           |
| `ecq_sr`    | 4  | step 8 rms, stochastic: updates whose values are mostly 0   | yes           |
| `ecq`       | 5  | step 3 rms, nearest level, centroids: the way down          | no            |
| `q4`        | 6  | 7 levels to the largest magnitude, stochastic               | yes           |
| `eden1`     | 7  | rotation, signs, a magnitude a chunk: 1 bit                 | over rotations|
| `eden`      | 8  | rotation, nearest levels, a scale a chunk: dense updates    | over rotations|
| `topk_sign` | 9  | the largest 1%, their signs, one magnitude; error feedback  | no            |

What a decoded value is off by at the most, beside float32's own rounding:

- `raw` nothing; `f16` |x| / 2**11 + max |x| / 2**25;
- `q8`, `q4`, `ecq_sr` a step; the mean is exact, the variance p (1 - p) step^2;
- `ecq` half a step, and where the symbol is 1 or -1 a step;
- `topk_sign` no more than there was: the norm of the error is at most the tensor's;
- `eden1`, `eden` the norm of a chunk's error is at most 1.5 sqrt(c) of the chunk's, c its size, and
  what the smallest scale can say; 0.75 and, at the step of 2.5, 1.0 of it in the mean.

An id says how a tensor is read; how it was written (its step, which values were kept) may differ
from payload to payload: `ecq_sr:16` is `ecq_sr` with a step of 16 rms. Ids are never reused.

Which to use: an update is noisy anyway and averaged over a cohort, so an error whose mean is zero
costs little and a bias is kept (FedPAQ, Reisizadeh et al. 2020, theorem 1). Nearest rounding has
the smaller error and is a contraction, which is what feeding the error back needs (Karimireddy et
al. 2019, assumption A): right for the chain of models on the way down, where one sender sees every
error, and for a device that is there in every round.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from quantization import chunks
from quantization.stages import (
    Array,
    Coded,
    Flat,
    Place,
    Scales,
    Stage,
    chain,
    largest,
    nearest,
    range_over,
    rms_times,
    rotation,
    sign,
    stochastic,
)
from wire import limits
from wire.errors import LocalProtocolError

AUTO: Final = "auto"
# A step of more root mean squares than a tensor of 2**40 values can have at its largest.
SETTING_MAX: Final = 1e6
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", re.ASCII)
_DIGITS_MAX: Final = 20
# Past this a level times its step could leave float32.
VALUE_ABS_MAX: Final = 1e37
EDEN_DEAD_ZONE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Codec:
    """One codec.

    Attributes:
        name, number: see the module.
        stage: what turns a tensor into symbols and back; None where bytes are made directly.
        feeds_back: whether its error may be added to the next message (it is smaller than what was
            sent).
        unbiased: whether the mean over its seeds is what was sent.
        setting: what the number behind the name means, None when it takes none.
        make: the codec with that number.
    """

    name: str
    number: int
    stage: Stage | None
    feeds_back: bool
    unbiased: bool
    setting: str | None = None
    make: Callable[[float], "Codec"] | None = None


def _raw_forward(values: Flat, _place: Place) -> Coded:
    return Coded(values)


def _raw_backward(
    values: Array, _parameters: tuple[float, ...], _scales: Scales, _place: Place
) -> Flat:
    return values.astype(np.float32)


def _f16_forward(values: Flat, _place: Place) -> Coded:
    scale = np.float32(np.abs(values).max(initial=0.0))
    return Coded(values / scale if scale else values, (float(scale),))


def _f16_backward(
    values: Array, parameters: tuple[float, ...], _scales: Scales, _place: Place
) -> Flat:
    return values.astype(np.float32) * np.float32(parameters[0])


# What is not symbols: the bytes of a float each, in the block's uncompressed part.
FLOATS: Final = MappingProxyType(
    {
        1: ("<f4", Stage("", _raw_forward, _raw_backward)),
        2: ("<f2", Stage("f", _f16_forward, _f16_backward)),
    }
)


def ecq_sr(step_rms: float = 8.0) -> Codec:
    """Stochastic rounding to steps of so many root mean squares (of the tensor)."""
    stage = stochastic(rms_times(step_rms))
    return Codec("ecq_sr", 4, stage, False, True, "step in rms", ecq_sr)  # noqa: FBT003 - see Codec


def ecq(step_rms: float = 3.0) -> Codec:
    """The nearest level, with steps of so many root mean squares."""
    stage = nearest(rms_times(step_rms))
    return Codec("ecq", 5, stage, True, False, "step in rms", ecq)  # noqa: FBT003 - see Codec


def eden(step_rms: float = 2.5) -> Codec:
    """EDEN with an entropy stage: a rotation, then the nearest of levels with a dead zone."""
    stage = chain(rotation(), chunks.levels(step_rms, EDEN_DEAD_ZONE))
    return Codec("eden", 8, stage, False, True, "step in rms", eden)  # noqa: FBT003 - see Codec


def topk_sign(share: float = 0.01) -> Codec:
    """The largest values' signs: sparse ternary compression (Sattler et al. 2019, algorithm 1)."""
    if share > 1.0:
        raise LocalProtocolError(f"codec topk_sign:{share:g}: a share is at most 1")
    stage = chain(largest(share), sign())
    return Codec("topk_sign", 9, stage, True, False, "share kept", topk_sign)  # noqa: FBT003


CODECS: Final = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            Codec("raw", 1, None, feeds_back=True, unbiased=True),
            Codec("f16", 2, None, feeds_back=True, unbiased=True),
            Codec("q8", 3, stochastic(range_over(127)), feeds_back=True, unbiased=True),
            ecq_sr(),
            ecq(),
            Codec("q4", 6, stochastic(range_over(7)), feeds_back=False, unbiased=True),
            Codec("eden1", 7, chain(rotation(), chunks.signs()), feeds_back=False, unbiased=True),
            eden(),
            topk_sign(),
        )
    }
)
BY_NUMBER: Final = MappingProxyType({codec.number: codec for codec in CODECS.values()})
CODEC_NAMES: Final = (*CODECS, AUTO)


def codec_for(spec: str) -> Codec:
    """The codec that `NAME` or `NAME:NUMBER` means; not `auto`, which is several.

    Raises:
        LocalProtocolError: no such codec, or a number that it cannot take.
    """
    name, colon, text = spec.partition(":")
    codec = CODECS.get(name)
    if codec is None:
        raise LocalProtocolError(f"codec {spec!r} is not one of {', '.join(CODEC_NAMES)}")
    if not colon:
        return codec
    if codec.make is None:
        raise LocalProtocolError(f"codec {name} takes no number: write {name!r}, not {spec!r}")
    return codec.make(number_in(spec, text))


def number_in(spec: str, text: str) -> float:
    """The number behind a codec's name, above 0 and at most `SETTING_MAX`.

    Raises:
        LocalProtocolError: it is none, or out of these bounds.
    """
    number = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not 0.0 < number <= SETTING_MAX:
        raise LocalProtocolError(
            f"codec {spec!r}: write a number above 0, at most {SETTING_MAX:g}, behind the colon"
        )
    return number


def bytes_in(spec: str, text: str) -> int:
    """The bytes in `auto:ERROR:BYTES`.

    Raises:
        LocalProtocolError: they are no whole number, or 0, or more than a transfer may have.
    """
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS_MAX else 0
    if not 1 <= number <= limits.TRANSFER_BYTES_MAX:
        raise LocalProtocolError(
            f"codec {spec!r}: write a whole number of bytes behind the second colon,"
            f" 1 to {limits.TRANSFER_BYTES_MAX}"
        )
    return number


def name_of(spec: str) -> str:
    """The codec's name without its number: what a device says that it can make."""
    return spec.partition(":")[0]


def check_spec(spec: str) -> str:
    """A codec's name, with or without its numbers, if it is one.

    Raises:
        LocalProtocolError: it is not.
    """
    name, *texts = spec.split(":")
    if name != AUTO:
        codec_for(spec)
    elif len(texts) > 2:  # noqa: PLR2004 - an error and a number of bytes
        raise LocalProtocolError(f"codec {spec!r}: write auto, auto:ERROR or auto:ERROR:BYTES")
    else:
        for text, read in zip(texts, (number_in, bytes_in), strict=False):
            read(spec, text)
    return spec


def keeps_residual(spec: str) -> bool:
    """Whether a device that sends with this codec has to add what the last update left out.

    So it is with a codec that is biased and whose error shrinks, and with `auto`, which chooses
    such ones; not with any other, one that is not known included.
    """
    name = name_of(spec)
    codec = CODECS.get(name)
    return name == AUTO or (codec is not None and codec.feeds_back and not codec.unbiased)


def feeds_back(spec: str) -> bool:
    """Whether what this codec leaves out may be put into the next message.

    What `auto` leaves out of a step of the chain may: there it chooses the nearest levels alone.
    """
    return name_of(spec) == AUTO or codec_for(spec).feeds_back
