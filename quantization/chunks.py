"""Levels of rotated values, with a scale for each chunk: what makes EDEN unbiased chunk by chunk.

Behind a rotation R, x' = s R^T q(R x) with s = |y|^2 / <y, q(y)>, y = R x, has x as its mean over
rotations, whatever q does with each value (Vargaftik et al. 2021, DRIVE, section 4.2; 2022, EDEN,
section 3, eq. 4). That needs one s for each vector that is rotated, and here that is a chunk: one s
for a whole tensor would blow up its strong chunks and lose its weak ones, always the same way.

A scale is a byte: a small float with 5 bits of exponent and 3 of fraction, rounded up or down by
chance so that its mean is exact.

    byte k  scale
    0 - 7   k * unit
    8 - 255 (8 + k % 8) * 2**(k // 8 - 1) * unit
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization.blocks import BLOCK_PARAMETERS_MAX
from quantization.chance import Purpose, stream, uniform
from quantization.rotation import Chunks, chunks_of
from quantization.stages import (
    SMALLEST_STEP,
    Array,
    Coded,
    Flat,
    Place,
    Scales,
    Stage,
    pieces_of,
    rms,
)
from quantization.symbols import SYMBOL_ABS_MAX

SCALE_TABLE: Final[NDArray[np.float32]] = np.array(
    [k if k < 8 else (8 + k % 8) << (k // 8 - 1) for k in range(256)],  # noqa: PLR2004
    np.float32,
)
_LARGEST: Final = float(SCALE_TABLE[-1])
CHUNKS_PER_PIECE: Final = chunks_of(BLOCK_PARAMETERS_MAX).count


@dataclass(frozen=True, slots=True)
class Levels:
    """A piece's values in levels.

    Attributes:
        cut: its chunks.
        levels: float32[n], whole numbers.
        steps: float64[chunks].
        energy: float64[chunks], the sum of squares.
        ones: float64[chunks], the sum of value * level where the level is 1 or -1.
        rest: float64[chunks], the same where it is more.
    """

    cut: Chunks
    levels: Flat
    steps: NDArray[np.float64]
    energy: NDArray[np.float64]
    ones: NDArray[np.float64]
    rest: NDArray[np.float64]


def quantize(
    values: Flat, step_rms: float, rms_all: float, dead_zone: float, noise: Flat | None = None
) -> Levels:
    """The levels of a piece of rotated values.

    A chunk of r times the tensor's rms gets a step of step_rms * rms * r**0.75. At the rates in
    use the error of an unbiased code falls as one over its bits, and then bits in proportion to r
    cost the least: with a Gaussian's tails that is close to this power. At least the largest
    magnitude of a chunk has a level.

    Args:
        values: float32[n], neither huge nor subnormal as far as they matter.
        step_rms: see `levels`.
        rms_all: of the tensor.
        dead_zone: see `levels`.
        noise: float32[n] in [-1, 1), see `_jitter`; None for none.
    """
    cut = chunks_of(values.size)
    energy = sums(np.square(values), cut)
    ratios = _rms_each(energy, cut) / rms_all if rms_all else np.zeros(cut.count)
    # The power by square roots, which are the same on every machine.
    roots = np.sqrt(ratios)
    steps = np.maximum(step_rms * rms_all * roots * np.sqrt(roots), SMALLEST_STEP)
    moved = values if noise is None else _jitter(values, noise, energy, cut, steps / 4.0)
    magnitudes = np.abs(moved)
    found = np.divide(magnitudes, spread(steps.astype(np.float32), cut), dtype=np.float32)
    found += np.float32(0.5 - dead_zone)
    np.floor(found, out=found)
    np.minimum(found, np.float32(SYMBOL_ABS_MAX), out=found)
    weak = maxima(found, cut) == 0.0
    if weak.any():
        largest = np.where(weak & (energy > 0.0), maxima(magnitudes, cut), np.float32(np.inf))
        found[magnitudes == spread(largest.astype(np.float32), cut)] = 1.0
    products = np.where(found == 1.0, np.copysign(values, values * moved), np.float32(0.0))
    ones = sums(products, cut)
    np.copysign(found, moved, out=found)
    np.multiply(values, found, out=products)
    return Levels(cut, found, steps, energy, ones, sums(products, cut) - ones)


def levels(step_rms: float, dead_zone: float) -> Stage:
    """The nearest of levels in each chunk, times a scale.

    The parameters are the scales' unit, and the ratio of a step to the mean of the first level: a
    symbol k reads as k where that is 1, 0 or -1, and as k * ratio where it is more.

    A dead zone sends magnitudes below (0.5 + dead_zone) steps to 0, which saves more bits than it
    costs error (Sullivan 1996, section IV).
    """

    def forward(values: Flat, place: Place) -> Coded:
        symbols = np.zeros(values.size, np.int16)
        exponent, unit_rms = _normal(values)
        found = []
        ones = ones_sum = 0.0
        for number, piece in pieces_of(values.size):
            part = np.ldexp(values[piece], exponent)
            noise = _noise(place, number, part.size)
            quantized = quantize(part, step_rms, unit_rms, dead_zone, noise)
            symbols[piece] = quantized.levels
            ones += float(np.count_nonzero(np.abs(quantized.levels) == 1.0))
            ones_sum += float(np.sum(quantized.ones / quantized.steps))
            found.append((quantized.energy, quantized.ones, quantized.rest))
        ratio = float(np.float32(ones / ones_sum)) if ones else 1.0
        energy, at_one, above = (np.concatenate(each) for each in zip(*found, strict=True))
        unit, scales = _write(energy, at_one + ratio * above, exponent, place)
        _clear(symbols, scales)
        return Coded(symbols, (unit, ratio), scales)

    def backward(
        symbols: Array, parameters: tuple[float, ...], scales: Scales, _place: Place
    ) -> Flat:
        values = symbols.astype(np.float32)
        np.multiply(values, np.float32(parameters[1]), out=values, where=np.abs(symbols) != 1)
        values *= _read(scales, parameters[0], values.size)
        return values

    return Stage("ff", forward, backward, scaled=True)


def signs() -> Stage:
    """The sign of each value, times a scale: DRIVE in chunks."""

    def forward(values: Flat, place: Place) -> Coded:
        symbols = np.zeros(values.size, np.int16)
        exponent, unit_rms = _normal(values)
        found = []
        for number, piece in pieces_of(values.size):
            part = np.ldexp(values[piece], exponent)
            cut = chunks_of(part.size)
            energy = sums(np.square(part), cut)
            moved = _jitter(part, _noise(place, number, part.size), energy, cut, energy)
            positive = moved >= 0.0
            if unit_rms:
                symbols[piece] = np.where(positive, 1, -1)
            found.append((energy, sums(np.where(positive, part, -part), cut)))
        energy, inner = (np.concatenate(each) for each in zip(*found, strict=True))
        unit, scales = _write(energy, inner, exponent, place)
        return Coded(symbols, (unit,), scales)

    def backward(
        symbols: Array, parameters: tuple[float, ...], scales: Scales, _place: Place
    ) -> Flat:
        values = symbols.astype(np.float32)
        values *= _read(scales, parameters[0], values.size)
        return values

    return Stage("f", forward, backward, scaled=True)


def _noise(place: Place, number: int, size: int) -> Flat:
    """float32[size] in [-1, 1) of a piece."""
    noise = uniform(stream(place.seed, Purpose.ROUNDING, place.tensor, number), size)
    noise *= np.float32(2.0)
    noise -= np.float32(1.0)
    return noise


def _jitter(
    values: Flat,
    noise: Flat,
    energy: NDArray[np.float64],
    cut: Chunks,
    most: NDArray[np.float64],
) -> Flat:
    """Values moved by up to 1 / sqrt(c) of their chunk's rms, c its size, or by `most`.

    Where one value of a chunk outweighs all others, rotated values are sums of c equal numbers with
    random signs: multiples of 2 / sqrt(c) of the rms, and a whole share of them exactly at 0 or at
    another edge. What is said of them would come from the small values alone, far too loud. Spread
    over the gap to the next multiple, they say as much as their neighbours.
    """
    if cut.width == 1:
        return values
    width = np.minimum(_rms_each(energy, cut) / np.sqrt(_sizes(cut)), most)
    moved = spread(width.astype(np.float32), cut)
    moved *= noise
    moved += values
    return moved


def _sizes(cut: Chunks) -> NDArray[np.float64]:
    sizes = np.full(cut.count, cut.width, np.float64)
    if cut.rest:
        sizes[-1] = cut.rest
    return sizes


def _rms_each(energy: NDArray[np.float64], cut: Chunks) -> NDArray[np.float64]:
    return np.sqrt(energy / _sizes(cut))


# -- by chunk --------------------------------------------------------------------------------------


def sums(values: Flat, cut: Chunks) -> NDArray[np.float64]:
    """The sum of each chunk."""
    out = np.empty(cut.count, np.float64)
    np.sum(
        values[: cut.edge].reshape(-1, cut.width), axis=1, dtype=np.float64, out=out[: cut.whole]
    )
    if cut.rest:
        out[-1] = np.sum(values[cut.edge :], dtype=np.float64)
    return out


def maxima(values: Flat, cut: Chunks) -> Flat:
    """The largest of each chunk."""
    out = np.empty(cut.count, np.float32)
    np.max(values[: cut.edge].reshape(-1, cut.width), axis=1, out=out[: cut.whole])
    if cut.rest:
        out[-1] = values[cut.edge :].max()
    return out


def spread(each: Flat, cut: Chunks) -> Flat:
    """Each chunk's number for each of its values."""
    if not cut.rest:
        return np.repeat(each, cut.width)
    return np.concatenate([np.repeat(each[:-1], cut.width), np.full(cut.rest, each[-1])])


# -- scales ----------------------------------------------------------------------------------------


def _normal(values: Flat) -> tuple[int, float]:
    """A power of two that brings values near 1, and their rms then: no square leaves float32."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0.0:
        return 0, 0.0
    exponent = -math.frexp(largest)[1]
    return exponent, math.ldexp(rms(values), exponent)


def _write(
    energy: NDArray[np.float64], inner: NDArray[np.float64], exponent: int, place: Place
) -> tuple[float, Scales]:
    """The unit and the bytes of scales energy / inner / 2**exponent."""
    exact = np.divide(energy, inner, out=np.zeros(energy.size), where=inner > 0.0)
    largest = math.ldexp(float(exact.max(initial=0.0)), -exponent)
    if largest == 0.0:
        return 0.0, np.zeros(exact.size, np.uint8)
    unit = float(np.float32(max(largest / _LARGEST, SMALLEST_STEP)))
    ratios = np.minimum(np.ldexp(exact, -exponent) / unit, _LARGEST)
    table = SCALE_TABLE.astype(np.float64)
    low = np.minimum(np.searchsorted(table, ratios, side="right") - 1, len(table) - 2)
    part = (ratios - table[low]) / (table[low + 1] - table[low])
    chance = uniform(stream(place.seed, Purpose.SCALES, place.tensor), exact.size)
    return unit, (low + (chance < part)).astype(np.uint8)


def _read(scales: Scales, unit: float, size: int) -> Flat:
    """The scale of each value."""
    return spread(SCALE_TABLE[scales] * np.float32(unit), chunks_of(size))


def _clear(symbols: Array, scales: Scales) -> None:
    """No symbols where the scale is 0: they would say nothing."""
    if scales.all():
        return
    for number, piece in pieces_of(symbols.size):
        cut = chunks_of(piece.stop - piece.start)
        mine = scales[number * CHUNKS_PER_PIECE :][: cut.count]
        symbols[piece][spread(mine.astype(np.float32), cut) == 0.0] = 0
