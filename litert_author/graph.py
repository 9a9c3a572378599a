"""A small tape: values that know how they came to be.

One graph holds a whole model: forward, loss, gradients and the optimiser's new values. Signatures
of the file share it; each takes the part that its results need, so what nothing needs is never
written. Equal operations on equal inputs are one value, and operations on small constants are
computed at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from litert_author.errors import AuthorError

Dtype: TypeAlias = Literal["float32", "int32", "bool"]
Shape: TypeAlias = tuple[int, ...]
Array: TypeAlias = NDArray[Any]
Number: TypeAlias = float | int

# Constants up to this many elements are folded; a larger one would stand in the file twice.
_FOLD_ELEMENTS_MAX: Final = 256


class Value:
    """A tensor of one graph: its shape and dtype, and the operation that gives it.

    Arithmetic with other values or numbers makes new values; see `litert_author.ops` for the rest.
    """

    __slots__ = ("attributes", "data", "dtype", "graph", "inputs", "name", "number", "op", "shape")

    def __init__(
        self,
        graph: "Graph",
        op: str,
        inputs: tuple["Value", ...],
        *,
        shape: Shape,
        dtype: Dtype,
        attributes: Mapping[str, Any],
        name: str,
        data: Array | None,
    ) -> None:
        self.graph = graph
        self.number = len(graph.values)
        self.op = op
        self.inputs = inputs
        self.shape = shape
        self.dtype = dtype
        self.attributes = attributes
        self.name = name
        self.data = data

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        return f"<{self.op} {self.dtype}{list(self.shape)}>"

    def __add__(self, other: "Value | Number") -> "Value":
        return self.graph.binary("add", self, other)

    def __sub__(self, other: "Value | Number") -> "Value":
        return self.graph.binary("sub", self, other)

    def __mul__(self, other: "Value | Number") -> "Value":
        return self.graph.binary("mul", self, other)

    def __truediv__(self, other: "Value | Number") -> "Value":
        return self.graph.binary("div", self, other)

    def __radd__(self, other: Number) -> "Value":
        return self.graph.binary("add", self, other)

    def __rmul__(self, other: Number) -> "Value":
        return self.graph.binary("mul", self, other)

    def __rsub__(self, other: Number) -> "Value":
        return self.graph.binary("sub", self.graph.constant(other), self)

    def __neg__(self) -> "Value":
        return self.graph.node("neg", (self,), self.shape)


class Graph:
    """Values in the order in which they were made, which is an order in which they can be computed.

    `fold` computes one operation on constants: `litert_author.reference.compute`.
    """

    def __init__(self, fold: Callable[[str, Mapping[str, Any], list[Array], Shape], Array]) -> None:
        self.values: list[Value] = []
        self._fold = fold
        self._known: dict[Any, Value] = {}

    def source(self, op: str, name: str, shape: Shape, dtype: Dtype = "float32") -> Value:
        """An `input` of a signature, or a `parameter`: a variable as it is before the step.

        The same name is the same value.
        """
        key = (op, name)
        if key not in self._known:
            self._known[key] = self._new(op, (), shape, dtype, {}, name=name)
        return self._known[key]

    def constant(self, value: Any, dtype: Dtype = "float32") -> Value:
        """A constant; equal bytes are one constant.

        Raises:
            AuthorError: values that are not finite.
        """
        array = np.ascontiguousarray(np.asarray(value, dtype))
        array = array.reshape(np.shape(value))
        if not np.isfinite(array).all():
            raise AuthorError("a constant has values that are not finite")
        key = ("constant", dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self._new("constant", (), array.shape, dtype, {}, data=array)
        return self._known[key]

    def node(
        self,
        op: str,
        inputs: Sequence[Value],
        shape: Shape,
        dtype: Dtype = "float32",
        **attributes: Any,
    ) -> Value:
        """The value of `op` on `inputs`, made once."""
        key = (op, tuple(i.number for i in inputs), shape, dtype, repr(sorted(attributes.items())))
        if key in self._known:
            return self._known[key]
        constants = [value.data for value in inputs if value.data is not None]
        if len(constants) == len(inputs) and math.prod(shape) <= _FOLD_ELEMENTS_MAX:
            wide = [
                array.astype(np.float64) if array.dtype == np.float32 else array
                for array in constants
            ]
            found = self.constant(self._fold(op, attributes, wide, shape), dtype)
        else:
            found = self._new(op, tuple(inputs), shape, dtype, attributes)
        self._known[key] = found
        return found

    def binary(self, op: str, a: Value, b: Value | Number, dtype: Dtype = "float32") -> Value:
        """An elementwise operation with broadcasting.

        Raises:
            AuthorError: shapes that do not broadcast.
        """
        other = b if isinstance(b, Value) else self.constant(b)
        try:
            shape = np.broadcast_shapes(a.shape, other.shape)
        except ValueError:
            raise AuthorError(
                f"{op}: shapes {a.shape} and {other.shape} do not go together"
            ) from None
        return self.node(op, (a, other), shape, dtype)

    def _new(
        self,
        op: str,
        inputs: tuple[Value, ...],
        shape: Shape,
        dtype: Dtype,
        attributes: Mapping[str, Any],
        *,
        name: str = "",
        data: Array | None = None,
    ) -> Value:
        shape = tuple(int(size) for size in shape)
        value = Value(
            self,
            op,
            inputs,
            shape=shape,
            dtype=dtype,
            attributes=attributes,
            name=name,
            data=data,
        )
        self.values.append(value)
        return value


def needed(results: Sequence[Value]) -> list[Value]:
    """All values that `results` are computed from, and they themselves, in an order that works."""
    seen: dict[int, Value] = {}
    waiting = list(results)
    while waiting:
        value = waiting.pop()
        if value.number not in seen:
            seen[value.number] = value
            waiting.extend(value.inputs)
    return [seen[number] for number in sorted(seen)]


def uses(results: Sequence[Value]) -> dict[int, int]:
    """How often each value that `results` need is used, `results` counting as uses."""
    count: dict[int, int] = {}
    for value in (*(i for v in needed(results) for i in v.inputs), *results):
        count[value.number] = count.get(value.number, 0) + 1
    return count
