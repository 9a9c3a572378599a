"""A weighted mean that does not depend on the order in which its terms come.

Float addition is not associative, so a float sum depends on who was first. Here each value is
scaled to an integer once, and integers add the same in any order: the same set of updates gives the
same bits. Memory is one int64 a parameter, whatever the number of updates.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantization.payload import decode
from wire import Schema, Tensors, limits
from wire.errors import LocalProtocolError, NotFiniteError

_INT64_BITS: Final = 62  # one bit for the sign, one to spare
_FRACTION_BITS_MAX: Final = 40  # float32 has 24; the rest is for small values


class FixedPointSum:
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
        self._sums: dict[str, NDArray[np.int64]] = {
            spec.name: np.zeros(spec.shape, np.int64) for spec in schema.tensors
        }

    def add(self, payload: bytes, weight: int) -> None:
        """Decode an update and add it; all of it or, when it raises, nothing.

        Raises:
            RemoteProtocolError: the payload is not an update of this schema.
            NotFiniteError: a value is NaN, infinite, or above `limits.UPDATE_VALUE_ABS_MAX`.
            LocalProtocolError: the weight or the number of updates passes its bound.
        """
        self.add_tensors(decode(payload, self.schema), weight)

    def add_tensors(self, tensors: Tensors, weight: int) -> None:
        """Add a decoded update; see `add`."""
        if not 1 <= weight <= self.weight_cap:
            raise LocalProtocolError(f"weight {weight} is not in 1..{self.weight_cap}")
        if self.count >= self.updates_max:
            raise LocalProtocolError(f"{self.updates_max} updates are in the sum already")
        self.schema.check(tensors)
        for name, values in tensors.items():
            largest = float(np.abs(values).max(initial=0.0))
            if largest > limits.UPDATE_VALUE_ABS_MAX:
                raise NotFiniteError(
                    f"{name}: a value of {largest:g}, at most {limits.UPDATE_VALUE_ABS_MAX:g}"
                )
        scale = 2.0**self.fraction_bits
        for name, values in tensors.items():
            self._sums[name] += np.rint(values.astype(np.float64) * scale).astype(np.int64) * weight
        self.count += 1
        self.total_weight += weight

    def merge(self, other: "FixedPointSum") -> None:
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
        for name, values in other._sums.items():  # noqa: SLF001 - its own class
            self._sums[name] += values
        self.count += other.count
        self.total_weight += other.total_weight

    def finish(self) -> tuple[Tensors, int]:
        """The weighted mean, float32, and the total weight.

        Raises:
            LocalProtocolError: nothing was added.
        """
        if self.total_weight == 0:
            raise LocalProtocolError("the mean of no updates")
        divisor = 2.0**self.fraction_bits * self.total_weight
        mean: Tensors = {
            name: (values / divisor).astype(np.float32) for name, values in self._sums.items()
        }
        return mean, self.total_weight
