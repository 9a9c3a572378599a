"""Where layers get their parameters: names, first values, and what is to be done with each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from litert_author.errors import AuthorError
from litert_author.graph import Graph, Shape, Value
from wire import TensorSpec
from wire.limits import NAME_CHARS_MAX
from wire.manifest import Part

# 24 bits of a draw are a float32 in [0, 1) without rounding.
_DRAW_SHIFT: Final = 40
_DRAW_STEPS: Final = 2**24


@dataclass
class Parameters:
    """All parameters of a model, in the order in which its layers made them.

    First values are drawn from `Philox(key=seed)` with the parameter's number as counter, by raw
    bits alone: the same on every machine and in every version of NumPy.
    """

    graph: Graph
    seed: int
    initial: Mapping[str, ArrayLike]
    values: dict[str, Value] = field(default_factory=dict)
    first: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    drawn: int = 0

    def specs(self) -> tuple[TensorSpec, ...]:
        """The trained ones, as they stand in the manifest."""
        return tuple(
            TensorSpec(name, self.first[name].shape, part=self.parts[name]) for name in self.values
        )

    def add(self, name: str, array: NDArray[np.float32], part: Part) -> Value:
        """A parameter; a constant of the file if it is frozen.

        Raises:
            AuthorError: a name that is taken or too long, or given values that do not fit.
        """
        if name in self.parts:
            raise AuthorError(f"two parameters are called {name}: give the layers other names")
        if len(name) > NAME_CHARS_MAX:
            raise AuthorError(f"{name}: a name has at most {NAME_CHARS_MAX} characters")
        if name in self.initial:
            given = np.asarray(self.initial[name])
            if given.shape != array.shape:
                raise AuthorError(
                    f"initial: {name} is {list(array.shape)}, not {list(given.shape)}"
                )
            array = given.astype(np.float32)
            if not np.isfinite(array).all():
                raise AuthorError(f"initial: {name} has values that are not finite")
        self.parts[name] = part
        if part == "frozen":
            return self.graph.constant(array)
        self.first[name] = array
        self.values[name] = self.graph.source("parameter", name, array.shape)
        return self.values[name]

    def draw(self, shape: Shape, spread: float) -> NDArray[np.float32]:
        """Uniform in [-spread, spread)."""
        self.drawn += 1
        bits = np.random.Philox(key=self.seed, counter=[0, 0, 0, self.drawn])
        raw = np.asarray(bits.random_raw(math.prod(shape)), np.uint64)
        unit = (raw >> np.uint64(_DRAW_SHIFT)).astype(np.float64) / _DRAW_STEPS
        return ((unit * 2.0 - 1.0) * spread).astype(np.float32).reshape(shape)


@dataclass(frozen=True)
class Scope:
    """One layer's part of the parameters: each is called `layer/name`."""

    parameters: Parameters
    name: str
    part: Part

    def child(self, kind: str, name: str, part: Part) -> "Scope":
        """The scope of a layer within this one; the second `dense` is `dense_2`."""
        counts = self.parameters.counts
        counts[kind] = counts.get(kind, 0) + 1
        return Scope(self.parameters, name or f"{kind}_{counts[kind]}", part)

    def weight(
        self, name: str, shape: Shape, fan_in: int, fan_out: int, *, part: Part | None = None
    ) -> Value:
        """Uniform within sqrt(6 / (fan_in + fan_out)): Glorot and Bengio 2010, eq. 16."""
        return self.uniform(name, shape, math.sqrt(6.0 / (fan_in + fan_out)), part=part)

    def uniform(self, name: str, shape: Shape, spread: float, *, part: Part | None = None) -> Value:
        """Uniform in [-spread, spread)."""
        array = self.parameters.draw(shape, spread)
        return self.parameters.add(f"{self.name}/{name}", array, part or self.part)

    def filled(self, name: str, shape: Shape, value: float, *, part: Part | None = None) -> Value:
        """All `value`."""
        array = np.full(shape, value, np.float32)
        return self.parameters.add(f"{self.name}/{name}", array, part or self.part)
