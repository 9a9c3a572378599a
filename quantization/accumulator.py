"""A weighted mean of payloads as they come, which does not depend on the order in which they do.

Float addition is not associative, so a float sum depends on who was first. Here each weighted value
is rounded to an integer once, and integers add the same in any order: the same set of updates gives
the same bits. Memory is one int64 a parameter, whatever the number of updates; of an update that
says little about most parameters only that little is touched.

What was added can be taken back to the last bit. So an update can be added before it is known how
much of it will count, and be exchanged for a part of itself when it is (`Portion`).
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization.payload import Payload, PieceValues
from wire import Schema, Tensors, limits
from wire.errors import LocalProtocolError, NotFiniteError

_INT64_BITS: Final = 62  # one bit for the sign, one to spare
_NOTHING: Final = np.empty(0, np.float32)
_NOWHERE: Final = np.empty(0, np.int64)
_FRACTION_BITS_MAX: Final = 40  # float32 has 24; the rest is for small values
# Shares of an update are counted in these units: all of it is this many.
SHARE_UNITS: Final = 2**20
_SHARE_BITS: Final = 20


@dataclass(frozen=True, slots=True)
class Portion:
    """How much of an update counts: share * damp * weight of its values, share * weight of it.

    Args:
        weight: from 1 to the sum's `weight_cap`.
        share: of values and weight, in units of 2**-20: 0 to 2**20.
        damp: of values alone, in the same units. A damped update pulls the mean towards 0.
    """

    weight: int
    share: int = SHARE_UNITS
    damp: int = SHARE_UNITS


@dataclass(frozen=True, slots=True)
class _Read:
    """A decoded update: pieces with all their values, and the others' values with their places."""

    whole: list[PieceValues]
    values: NDArray[np.float32]
    at: NDArray[np.int64]

    @property
    def norm(self) -> float:
        """L2, of float64 squares added in one order: the same payload, the same bits."""
        parts = [*(part.values for part in self.whole), self.values]
        squares = (float(np.sum(np.square(part, dtype=np.float64))) for part in parts)
        return math.sqrt(math.fsum(squares))


class Accumulator:
    """Sum of weight * update, in int64 fixed point.

    The number of fraction bits follows from the bounds, so that the sum cannot overflow:
    2**bits * VALUE_ABS_MAX * weight_cap * updates_max < 2**62.

    Args:
        schema: what updates decode to.
        weight_cap: the largest weight of one update.
        updates_max: how many may be added.

    Raises:
        LocalProtocolError: a bound is not positive.
    """

    def __init__(self, schema: Schema, *, weight_cap: int, updates_max: int) -> None:
        if weight_cap < 1 or updates_max < 1:
            raise LocalProtocolError("weight_cap and updates_max are at least 1")
        self.schema = schema
        self.weight_cap = weight_cap
        self.updates_max = updates_max
        bound_bits = sum(
            math.ceil(math.log2(bound))
            for bound in (limits.UPDATE_VALUE_ABS_MAX, weight_cap, updates_max)
        )
        self.fraction_bits = min(_INT64_BITS - bound_bits, _FRACTION_BITS_MAX)
        self.count = 0
        self._total = 0  # in units of 2**-20
        self._sums = np.zeros(schema.parameters, np.int64)
        self._starts: list[int] = [0, *np.cumsum([spec.size for spec in schema.tensors]).tolist()]

    @property
    def total_weight(self) -> int:
        """Of all updates, with their shares; a fraction of one is left out."""
        return self._total >> _SHARE_BITS

    def add(
        self, payload: bytes, weight: int, *, share: int = SHARE_UNITS, damp: int = SHARE_UNITS
    ) -> float:
        """Decode an update and add it; all of it or, when it raises, nothing.

        Returns:
            The L2 norm of the update as decoded, before its weight.

        Raises:
            RemoteProtocolError: the payload is not an update of this schema.
            NotFiniteError: a value is NaN, infinite, or above `limits.UPDATE_VALUE_ABS_MAX`.
            LocalProtocolError: the weight or the number of updates passes its bound.
        """
        portion = Portion(weight, share, damp)
        self._check(portion)
        self._check_room()
        read = self._read(payload)
        self._change(read, portion, 1)
        self.count += 1
        return read.norm

    def measure(self, payload: bytes) -> float:
        """Decode an update as `add` does, with what it raises, and only return the norm."""
        return self._read(payload).norm

    def take_back(self, payload: bytes, portion: Portion) -> None:
        """Undo `add` to the last bit; the portion is the one that counts now."""
        self._check(portion)
        self._change(self._read(payload), portion, -1)
        self.count -= 1

    def exchange(self, payload: bytes, portion: Portion, other: Portion) -> None:
        """Make an update that was added as one portion count as another, exactly."""
        self._check(portion)
        self._check(other)
        read = self._read(payload)
        self._change(read, portion, -1)
        self._change(read, other, 1)

    def add_tensors(self, tensors: Tensors, weight: int) -> None:
        """Add a decoded update; see `add`."""
        portion = Portion(weight)
        self._check(portion)
        self._check_room()
        self.schema.check(tensors)
        for name, values in tensors.items():
            self._check_values(name, values)
        scale = self._scale(portion)
        for spec, start in zip(self.schema.tensors, self._starts, strict=False):
            self._sums[start : start + spec.size] += _integers(np.ravel(tensors[spec.name]), scale)
        self._total += portion.weight * portion.share
        self.count += 1

    def _read(self, payload: bytes) -> _Read:
        read = Payload(payload, self.schema)
        parts = [part for number in range(len(read.blocks)) for part in read.block(number)]
        # What is sparse is handled in one go: a few values of each block are not worth a call each.
        whole = [part for part in parts if part.positions is None]
        some = [(p, p.positions) for p in parts if p.positions is not None and p.positions.size]
        values = np.concatenate([part.values for part, _positions in some] or [_NOTHING])
        if not self._are_within(values):
            whole, values = parts, _NOTHING  # to say which tensor it was
        for part in whole:
            self._check_values(self.schema.tensors[part.piece.tensor].name, part.values)
        # Positions differ, so that each value is added once.
        at = np.concatenate(
            [positions + self._start(part) for part, positions in some] or [_NOWHERE]
        )
        return _Read(whole, values, at)

    def _change(self, read: _Read, portion: Portion, sign: int) -> None:
        scale = sign * self._scale(portion)  # what is negative is rounded as what is positive
        if portion.share and portion.damp:
            for part in read.whole:
                start = self._start(part)
                self._sums[start : start + part.piece.size] += _integers(part.values, scale)
            if read.at.size:
                self._sums[read.at] += _integers(read.values, scale)
        self._total += sign * portion.weight * portion.share

    def _check(self, portion: Portion) -> None:
        if not 1 <= portion.weight <= self.weight_cap:
            raise LocalProtocolError(f"weight {portion.weight} is not in 1..{self.weight_cap}")
        if not (0 <= portion.share <= SHARE_UNITS and 0 <= portion.damp <= SHARE_UNITS):
            raise LocalProtocolError(f"{portion}: a share is 0 to {SHARE_UNITS}")

    def _check_room(self) -> None:
        if self.count >= self.updates_max:
            raise LocalProtocolError(f"{self.updates_max} updates are in the sum already")

    @staticmethod
    def _are_within(values: NDArray[np.float32]) -> bool:
        bound = limits.UPDATE_VALUE_ABS_MAX
        return values.size == 0 or bool(values.max() <= bound and values.min() >= -bound)

    def _check_values(self, name: str, values: NDArray[np.float32]) -> None:
        if not self._are_within(values):
            largest = float(np.abs(values).max())
            raise NotFiniteError(
                f"{name}: a value of {largest:g}, at most {limits.UPDATE_VALUE_ABS_MAX:g}"
            )

    def _scale(self, portion: Portion) -> float:
        units = float(portion.weight * portion.share * portion.damp)
        return units * 2.0 ** (self.fraction_bits - 2 * _SHARE_BITS)

    def _start(self, part: PieceValues) -> int:
        return self._starts[part.piece.tensor] + part.piece.start

    def merge(self, other: "Accumulator") -> None:
        """Add another sum with the same bounds.

        Raises:
            LocalProtocolError: other bounds, or too many updates together.
        """
        if (self.schema, self.weight_cap, self.updates_max) != (
            other.schema,
            other.weight_cap,
            other.updates_max,
        ):
            raise LocalProtocolError("sums of other schemas or bounds do not add")
        if self.count + other.count > self.updates_max:
            raise LocalProtocolError(f"more than {self.updates_max} updates together")
        self._sums += other._sums  # noqa: SLF001 - its own class
        self.count += other.count
        self._total += other._total  # noqa: SLF001 - as above

    def finish(self) -> tuple[Tensors, int]:
        """The weighted mean, float32, and the total weight.

        Raises:
            LocalProtocolError: nothing was added.
        """
        if self._total == 0:
            raise LocalProtocolError("the mean of no updates")
        divisor = 2.0**self.fraction_bits * (self._total / SHARE_UNITS)
        mean = (self._sums / divisor).astype(np.float32)
        tensors: Tensors = {
            spec.name: mean[start : start + spec.size].reshape(spec.shape)
            for spec, start in zip(self.schema.tensors, self._starts, strict=False)
        }
        return tensors, self.total_weight


def _integers(values: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    """round(value * scale), ties to even; scale is a power of two times a small integer."""
    scaled = np.multiply(values, scale, dtype=np.float64)
    np.rint(scaled, out=scaled)
    return scaled.astype(np.int64)
