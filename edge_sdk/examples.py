"""What an example is: fields of fixed dtype and shape, checked as they come; arrays as they go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from wire.errors import PotluckError

Arrays: TypeAlias = tuple[NDArray[Any], ...]

_RESERVED: Final = ("at", "group")
# What an integer, a float and a bool may be made from.
_FROM: Final = {"i": "iub", "u": "iub", "f": "fiub", "b": "b"}


class ExampleError(PotluckError):
    """What an app wants to add, or its description of it, does not fit; the text says why."""


class Split(NamedTuple):
    """One moment of a store: arrays in the order of its fields, the oldest example first."""

    train: Arrays
    holdout: Arrays


class Index(NamedTuple):
    """What a store has, the oldest first: for `delete`, and for owners who ask."""

    ids: NDArray[np.int64]
    at_s: NDArray[np.float64]
    held_out: NDArray[np.bool_]


@dataclass(frozen=True)
class ExampleStats:
    """What a store holds and has lost.

    `buffered` are not in the file yet. `dropped` never came there: the disk took nothing, and the
    buffer was full. `file_bytes` is with the log. `holdout` is the fraction of the file.
    """

    train: int
    held_out: int
    buffered: int
    dropped: int
    file_bytes: int
    holdout: float
    error: str


class Fields:
    """The fields of an example, one after the other, little-endian.

    Args:
        fields: name -> (dtype, shape).

    Raises:
        ExampleError: there are none, or one that no array can be.
    """

    def __init__(self, fields: Mapping[str, tuple[DTypeLike, Sequence[int]]]) -> None:
        if not fields or any(name in _RESERVED for name in fields):
            raise ExampleError("fields: name at least one, and none `at` or `group`")
        self._about = {name: _field(name, *about) for name, about in fields.items()}
        self.record = np.dtype([(name, *about) for name, about in self._about.items()])

    @property
    def layout(self) -> str:
        """What a file says of its fields."""
        return ", ".join(
            f"{name} {dtype.name}{list(shape)}" for name, (dtype, shape) in self._about.items()
        )

    def encode(self, values: Sequence[Any], named: Mapping[str, Any]) -> bytes:
        """The bytes of one example, given in order or by name.

        Raises:
            ExampleError: a field is missing, or has another shape or dtype, or is not finite.
        """
        if values and not named and len(values) == len(self._about):
            given: Mapping[str, Any] = dict(zip(self._about, values, strict=True))
        elif not values and named.keys() == self._about.keys():
            given = named
        else:
            raise ExampleError(f"an example is {', '.join(self._about)}: all in order or by name")
        return b"".join(_bytes_of(name, given[name], *about) for name, about in self._about.items())

    def empty(self, count: int) -> Arrays:
        """An array for each field, of so many examples."""
        return tuple(
            np.empty((count, *shape), dtype.newbyteorder("="))
            for dtype, shape in self._about.values()
        )

    def fill(self, arrays: Arrays, start: int, newest_first: bytes) -> None:
        """Put examples that lie one after the other, the newest first, in order of arrival."""
        records = np.frombuffer(newest_first, self.record)
        for array, name in zip(arrays, self._about, strict=True):
            array[start : start + len(records)] = records[name][::-1]


def _field(
    name: str, dtype: DTypeLike, shape: Sequence[int]
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    kind = np.dtype(dtype)
    if kind.kind not in "fiub" or any(length < 1 for length in shape):
        raise ExampleError(f"{name}: {kind}{list(shape)}; a field is of numbers, each length > 0")
    return kind.newbyteorder("<"), tuple(int(length) for length in shape)


def _bytes_of(name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """A field of one example, checked."""
    try:
        given = np.asarray(value)
    except ValueError as error:  # lists of unequal lengths
        raise ExampleError(f"{name}: {error}") from error
    if given.shape != shape:
        raise ExampleError(f"{name}: {list(given.shape)}, expected {list(shape)}")
    array = given
    if given.dtype != dtype:
        if given.dtype.kind not in _FROM[dtype.kind]:
            raise ExampleError(f"{name}: {given.dtype}, expected {dtype.name}")
        with np.errstate(over="ignore", invalid="ignore"):
            array = given.astype(dtype)
        if dtype.kind in "iu" and not np.array_equal(array, given):
            raise ExampleError(f"{name}: has values that {dtype.name} does not have")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ExampleError(f"{name}: has values that are not finite, or too large for {dtype.name}")
    return array.tobytes()


class HasSplit(Protocol):
    """A store, or what is like one."""

    def split(self) -> Split:
        """Both sides as they are now."""
        ...


Source: TypeAlias = (
    HasSplit | Callable[[], tuple[Sequence[ArrayLike], Sequence[ArrayLike]]] | Sequence[ArrayLike]
)


def current(source: Source, holdout: Sequence[ArrayLike] | None = None) -> Split:
    """What a trainer works on now.

    Args:
        source: a store; a function that returns both sides; or the arrays to train on.
        holdout: arrays that are never trained on, instead of those of the source.

    Raises:
        ExampleError: arrays of one side have different lengths.
    """
    split = getattr(source, "split", None)
    if split is not None:
        train, held = split()
    elif callable(source):
        train, held = source()
    else:
        train, held = cast("Sequence[ArrayLike]", source), ()
    sides = [tuple(np.asarray(array) for array in side) for side in (train, holdout or held)]
    for side in sides:
        if len({len(array) for array in side}) > 1:
            raise ExampleError(f"arrays of {[len(array) for array in side]} examples: not the same")
    return Split(*sides)
