"""A weighted mean of payloads as they come, which does not depend on the order in which they do.

Float addition is not associative, so a float sum depends on who was first. Here each weighted value
is rounded to an integer once, and integers add the same in any order: the same set of updates gives
the same bits. Memory is one int64 a parameter, whatever the number of updates; of an update that
says little about most parameters only that little is touched.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization.payload import Payload, PieceValues
from wire import Schema, Tensors, limits
from wire.errors import LocalProtocolError, NotFiniteError

_INT64_BITS: Final = 62  # one bit for the sign, one to spare
_NOTHING: Final = np.empty(0, np.float32)
_FRACTION_BITS_MAX: Final = 40  # float32 has 24; the rest is for small values
# Factors are whole multiples of 1 / FACTOR_ONE, so that sums and weights stay integers.
FACTOR_ONE: Final = 2**20


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
        self.total_weight = 0
        # What factors take off the total weight, in units of 1 / FACTOR_ONE.
        self._discount = 0
        self._sums = np.zeros(schema.parameters, np.int64)
        self._starts: list[int] = [0, *np.cumsum([spec.size for spec in schema.tensors]).tolist()]

    def add(self, payload: bytes, weight: int, factor: float = 1.0) -> None:
        """Decode an update and add it; all of it or, when it raises, nothing.

        Args:
            payload: the update.
            weight: its examples, at most the cap.
            factor: over 0, to 1: what its weight is multiplied by, rounded to 1 / FACTOR_ONE.

        Raises:
            RemoteProtocolError: the payload is not an update of this schema.
            NotFiniteError: a value is NaN, infinite, or above `limits.UPDATE_VALUE_ABS_MAX`.
            LocalProtocolError: the weight, the factor or the number of updates passes its bound.
        """
        self._check(weight)
        parts_of_one = _parts_of_one(factor)
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
        scale = self._scale(weight) * (parts_of_one / FACTOR_ONE)
        for part in whole:
            start = self._start(part)
            self._sums[start : start + part.piece.size] += _integers(part.values, scale)
        if some:
            # Positions differ, so that each value is added once.
            at = np.concatenate([positions + self._start(part) for part, positions in some])
            self._sums[at] += _integers(values, scale)
        self._count(weight)
        self._discount += weight * (FACTOR_ONE - parts_of_one)

    def add_tensors(self, tensors: Tensors, weight: int) -> None:
        """Add a decoded update; see `add`."""
        self._check(weight)
        self.schema.check(tensors)
        for name, values in tensors.items():
            self._check_values(name, values)
        scale = self._scale(weight)
        for spec, start in zip(self.schema.tensors, self._starts, strict=False):
            self._sums[start : start + spec.size] += _integers(np.ravel(tensors[spec.name]), scale)
        self._count(weight)

    def _check(self, weight: int) -> None:
        if not 1 <= weight <= self.weight_cap:
            raise LocalProtocolError(f"weight {weight} is not in 1..{self.weight_cap}")
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

    def _scale(self, weight: int) -> float:
        return 2.0**self.fraction_bits * weight

    def _start(self, part: PieceValues) -> int:
        return self._starts[part.piece.tensor] + part.piece.start

    def _count(self, weight: int) -> None:
        self.count += 1
        self.total_weight += weight

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
        self.total_weight += other.total_weight
        self._discount += other._discount  # noqa: SLF001 - its own class

    def finish(self) -> tuple[Tensors, int]:
        """The weighted mean, float32, and the total weight before factors.

        Raises:
            LocalProtocolError: nothing was added.
        """
        if self.total_weight == 0:
            raise LocalProtocolError("the mean of no updates")
        parts = self.total_weight * FACTOR_ONE - self._discount
        divisor = 2.0**self.fraction_bits * (parts / FACTOR_ONE)
        mean = (self._sums / divisor).astype(np.float32)
        tensors: Tensors = {
            spec.name: mean[start : start + spec.size].reshape(spec.shape)
            for spec, start in zip(self.schema.tensors, self._starts, strict=False)
        }
        return tensors, self.total_weight


def _parts_of_one(factor: float) -> int:
    """A factor as a whole number of 1 / FACTOR_ONE."""
    parts = round(factor * FACTOR_ONE) if math.isfinite(factor) else 0
    if not 1 <= parts <= FACTOR_ONE:
        raise LocalProtocolError(f"a factor of {factor:g} is not over 0 and at most 1")
    return parts


def _integers(values: NDArray[np.float32], scale: float) -> NDArray[np.int64]:
    """round(value * scale), ties to even; scale is a power of two times an integer."""
    scaled = np.multiply(values, scale, dtype=np.float64)
    np.rint(scaled, out=scaled)
    return scaled.astype(np.int64)
