"""What codecs are made of: stages, pairs of pure functions, put in a row by `chain`.

A stage's `forward` takes a flat tensor and gives another and a few numbers, its *parameters*, which
travel in the payload's header; `backward` takes a piece of the second tensor and the parameters and
gives that piece of the first, or an estimate of it. The last stage of a codec makes small integers,
which `symbols` turns into bytes. So the order of what a codec does is its definition:

    eden = chain(rotation(), nearest(rms_times(2.5), dead_zone=0.1, unbiased=True))

Stages work piece by piece, in float32, with sums in float64 and nothing of a BLAS: the same bits on
every machine. Parameters travel as bfloat16 or float32, and `forward` works with what travels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from quantization.blocks import BLOCK_PARAMETERS_MAX
from quantization.chance import Purpose, stream, uniform
from quantization.rotation import CHUNK, rotate, unrotate
from quantization.symbols import SYMBOL_ABS_MAX

Flat = NDArray[np.float32]
Array = NDArray[Any]

_SMALLEST_STEP: Final = float(np.finfo(np.float32).tiny)
# Of a tensor whose values are up to 1e37 large, whatever the factor: a level stays in float32.
_LARGEST_STEP: Final = 1e38
_BFLOAT16_LOW_BITS: Final = 16


@dataclass(frozen=True, slots=True)
class Place:
    """Where public chance is drawn: the payload's seed, the tensor, the piece."""

    seed: int
    tensor: int = 0
    piece: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A pair of pure functions.

    Attributes:
        parameters: the type of each parameter, "b" for bfloat16 and "f" for float32, in order.
        forward: (float32[n], place of the tensor) -> (array[n], parameters).
        backward: (array[m], parameters, place of the piece) -> float32[m].
        local: whether a value depends on its own symbol alone, so that a 0 is 0 and needs no look.
        seeded: whether `backward` draws from the payload's seed.
    """

    parameters: str
    forward: Callable[[Flat, Place], tuple[Array, tuple[float, ...]]]
    backward: Callable[[Array, tuple[float, ...], Place], Flat]
    local: bool = True
    seeded: bool = False


def chain(*stages: Stage) -> Stage:
    """One stage that does what these do, in this order; `backward` in the other."""
    sizes = [len(stage.parameters) for stage in stages]

    def forward(values: Flat, place: Place) -> tuple[Array, tuple[float, ...]]:
        current: Array = values
        parameters: tuple[float, ...] = ()
        for stage in stages:
            current, own = stage.forward(current, place)
            parameters += own
        return current, parameters

    def backward(symbols: Array, parameters: tuple[float, ...], place: Place) -> Flat:
        current, end = symbols, len(parameters)
        for stage, size in zip(reversed(stages), reversed(sizes), strict=True):
            current = stage.backward(current, parameters[end - size : end], place)
            end -= size
        return current

    return Stage(
        parameters="".join(stage.parameters for stage in stages),
        forward=forward,
        backward=backward,
        local=all(stage.local for stage in stages),
        seeded=any(stage.seeded for stage in stages),
    )


def pieces_of(size: int) -> Iterator[tuple[int, slice]]:
    """The pieces of a tensor of `size` values: number and slice."""
    for number, start in enumerate(range(0, size, BLOCK_PARAMETERS_MAX)):
        yield number, slice(start, min(start + BLOCK_PARAMETERS_MAX, size))


# -- numbers ---------------------------------------------------------------------------------------


def bfloat16(value: float) -> float:
    """The nearest bfloat16, ties to even: the upper half of a float32."""
    bits = int(np.float32(value).view(np.uint32))
    bits += 0x7FFF + ((bits >> _BFLOAT16_LOW_BITS) & 1)
    return from_bfloat16(bits >> _BFLOAT16_LOW_BITS)


def from_bfloat16(bits: int) -> float:
    """The value of a bfloat16's 16 bits."""
    return float(np.uint32(bits << _BFLOAT16_LOW_BITS).view(np.float32))


def to_bfloat16(value: float) -> int:
    """The 16 bits of a value that is a bfloat16."""
    return int(np.float32(value).view(np.uint32)) >> _BFLOAT16_LOW_BITS


def energy(values: Flat) -> float:
    """The sum of squares, whatever the magnitudes: scaled, so that no square leaves float32."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    # Squares of float32 in float32 are good to 1e-7 while they are neither huge nor subnormal.
    scale = 1.0 if 1e-12 < largest < 1e12 else 2.0 ** -math.frexp(largest)[1]  # noqa: PLR2004
    total = 0.0
    for _number, piece in pieces_of(values.size):
        part = values[piece] if scale == 1.0 else values[piece] * np.float64(scale)
        total += float(np.sum(np.square(part), dtype=np.float64))
    return total / scale / scale


def rms(values: Flat) -> float:
    """The root of the mean square; 0 for nothing."""
    return math.sqrt(energy(values) / values.size) if values.size else 0.0


StepOf = Callable[[Flat], float]


def rms_times(factor: float) -> StepOf:
    """A step of `factor` root mean squares."""

    def step(values: Flat) -> float:
        size = factor * rms(values)
        # No symbol may leave int16; with a step of a fraction of the rms one outlier could.
        return max(size, float(np.abs(values).max(initial=0.0)) / (SYMBOL_ABS_MAX - 1))

    return step


def range_over(levels: int) -> StepOf:
    """A step with which the largest magnitude is `levels` steps, or a little less."""

    def step(values: Flat) -> float:
        largest = float(np.abs(values).max(initial=0.0))
        rounded = bfloat16(largest / levels)
        # Rounded up: the largest value must not pass the last level.
        return rounded if rounded * levels >= largest else rounded * (1.0 + 2.0**-7)

    return step


def _travelling_step(values: Flat, step_of: StepOf) -> float:
    """The step as it travels: 0 when there is nothing to say."""
    if not values.any():
        return 0.0
    return bfloat16(min(max(step_of(values), _SMALLEST_STEP), _LARGEST_STEP))


# -- stages ----------------------------------------------------------------------------------------


def stochastic(step_of: StepOf) -> Stage:
    """Round to a multiple of the step, up or down by chance, so that the mean is exact.

    floor(x / step + u), u uniform on [0, 1): E[decoded] = x and the variance is p (1 - p) step^2
    with p the fraction of x / step (Gupta et al. 2015, section 3; Alistarh et al. 2017, QSGD,
    section 3.1 for the use with gradients).
    """

    def forward(values: Flat, place: Place) -> tuple[Array, tuple[float, ...]]:
        step = _travelling_step(values, step_of)
        symbols = np.zeros(values.size, np.int16)
        if step:
            # Divided in float64: 1 / step of a tiny step leaves float32.
            for number, piece in pieces_of(values.size):
                noise = uniform(
                    stream(place.seed, Purpose.ROUNDING, place.tensor, number),
                    piece.stop - piece.start,
                )
                noise += values[piece] / np.float32(step)
                np.floor(noise, out=noise)
                symbols[piece] = noise
        return symbols, (step,)

    return Stage("b", forward, _times_step)


def _times_step(symbols: Array, parameters: tuple[float, ...], _place: Place) -> Flat:
    return np.multiply(symbols, np.float32(parameters[0]), dtype=np.float32)


def nearest(step_of: StepOf, *, dead_zone: float = 0.0, unbiased: bool = False) -> Stage:
    """Round to the nearest multiple of the step; what rounds to +-1 is read as its mean.

    The mean of a cell has its least square error (Lloyd 1982, condition 2; Max 1960, eq. 3). A dead
    zone sends magnitudes below (0.5 + dead_zone) steps to 0, which saves more bits than it costs
    error (Sullivan 1996, section IV).

    Behind a rotation `unbiased` multiplies all levels by |y|^2 / <y, q(y)>, so that the mean over
    rotations is the vector itself (Vargaftik et al. 2022, EDEN, section 3, eq. 4).
    """

    def forward(values: Flat, _place: Place) -> tuple[Array, tuple[float, ...]]:
        step = _travelling_step(values, step_of)
        symbols = np.zeros(values.size, np.int16)
        if not step:
            return symbols, (0.0, 0.0)
        inner = outer = ones_sum = 0.0
        ones = 0
        for _number, piece in pieces_of(values.size):
            scaled = values[piece] / np.float32(step)
            magnitudes = np.abs(scaled)
            levels = np.floor(magnitudes + np.float32(0.5 - dead_zone))
            symbols[piece] = np.copysign(levels, scaled)
            at_one = levels == 1.0
            ones += int(np.count_nonzero(at_one))
            ones_sum += float(np.sum(magnitudes, where=at_one, dtype=np.float64))
            if unbiased:
                inner += float(np.sum(np.square(scaled), dtype=np.float64))
                large = levels > 1.0
                outer += float(np.sum(magnitudes * levels, where=large, dtype=np.float64))
        if not symbols.any():
            # Nothing reaches the first level, as in a tensor of equal values: a level a sign.
            np.copyto(symbols, np.sign(values), casting="unsafe")
            ones = int(np.count_nonzero(symbols))
            ones_sum = float(np.sum(np.abs(values), dtype=np.float64)) / step
        level = ones_sum / ones if ones else 1.0
        gain = 1.0
        if unbiased:
            outer += ones_sum * level
            gain = inner / outer if outer else 1.0
        return symbols, (_float32(step * gain), _float32(level * step * gain))

    return Stage("ff", forward, _times_levels)


def _times_levels(symbols: Array, parameters: tuple[float, ...], _place: Place) -> Flat:
    step, level = np.float32(parameters[0]), np.float32(parameters[1])
    values = np.multiply(symbols, step, dtype=np.float32)
    ones = np.abs(symbols) == 1
    np.multiply(symbols, level, out=values, where=ones, dtype=np.float32)
    return values


def sign(*, unbiased: bool = False) -> Stage:
    """Keep the sign and one magnitude.

    The mean magnitude has the least square error (Bernstein et al. 2018; Sattler et al. 2019,
    algorithm 1). `unbiased`, behind a rotation, it is |y|^2 / |y|_1 (Vargaftik et al. 2021, DRIVE,
    section 4.2), and a value of 0 counts as positive, so that a symbol is one bit.
    """

    def forward(values: Flat, _place: Place) -> tuple[Array, tuple[float, ...]]:
        symbols = np.sign(values).astype(np.int16)
        kept = int(np.count_nonzero(symbols))
        if not kept:
            return symbols, (0.0,)
        magnitudes = float(np.sum(np.abs(values), dtype=np.float64))
        if unbiased:
            symbols[symbols == 0] = 1
            return symbols, (_float32(energy(values) / magnitudes),)
        return symbols, (_float32(magnitudes / kept),)

    return Stage("f", forward, _times_step)


def largest(share: float) -> Stage:
    """Keep a share of the values, those of the largest magnitude, at least one; the rest is 0.

    Top-k (Aji and Heafield 2017; Stich et al. 2018, definition 2.1). Of equal values at the edge
    the first are kept.
    """

    def forward(values: Flat, _place: Place) -> tuple[Array, tuple[float, ...]]:
        if values.size == 0:
            return values, ()
        count = max(1, round(share * values.size))
        magnitudes = np.abs(values)
        edge = np.partition(magnitudes, values.size - count)[values.size - count]
        keep = magnitudes > edge
        at_edge = np.flatnonzero(magnitudes == edge)
        keep[at_edge[: count - int(np.count_nonzero(keep))]] = True
        return np.where(keep, values, np.float32(0.0)), ()

    def backward(values: Array, _parameters: tuple[float, ...], _place: Place) -> Flat:
        return np.asarray(values, np.float32)

    return Stage("", forward, backward)


def rotation(chunk: int = CHUNK) -> Stage:
    """The randomized Hadamard transform of `rotation`, with signs from the payload's seed."""

    def forward(values: Flat, place: Place) -> tuple[Array, tuple[float, ...]]:
        out = np.empty_like(values)
        for number, piece in pieces_of(values.size):
            out[piece] = rotate(values[piece], place.seed, place.tensor, number, chunk)
        return out, ()

    def backward(values: Array, _parameters: tuple[float, ...], place: Place) -> Flat:
        return unrotate(
            np.asarray(values, np.float32), place.seed, place.tensor, place.piece, chunk
        )

    return Stage("", forward, backward, local=False, seeded=True)


def _float32(value: float) -> float:
    return float(np.float32(value))
