"""What a model is to potluck: named tensors of fixed shape and dtype, in one order.

`Manifest` is what a task hands over: the schema *and* the initial arrays. `Schema` is the part that
both sides agree on; sizes of every payload follow from it alone, so that a decoder knows how much
to allocate before it reads a byte. The order of tensors is the order of the dict that made it, and
never changes within a federation.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from wire import limits
from wire.errors import NotFiniteError, PotluckError, SchemaMismatchError, TooLargeError

Part: TypeAlias = Literal["shared", "personal", "frozen"]
Tensors: TypeAlias = dict[str, NDArray[np.float32]]


class ManifestError(PotluckError):
    """A task describes a model that potluck cannot carry; the text says which tensor and why."""


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor of a schema: its name, shape, dtype and whether it travels.

    `part` is `shared` (travels and is averaged), `personal` (stays on the device) or `frozen`
    (the same for all, never trained).
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"
    part: Part = "shared"

    @property
    def size(self) -> int:
        """Number of elements; 1 for a 0-d tensor, 0 for an empty one."""
        return math.prod(self.shape)


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ordered tensor specs of a model."""

    tensors: tuple[TensorSpec, ...]

    @property
    def parameters(self) -> int:
        """Number of parameters over all tensors."""
        return sum(spec.size for spec in self.tensors)

    @property
    def shared(self) -> "Schema":
        """The part that travels, in the same order."""
        return Schema(tuple(spec for spec in self.tensors if spec.part == "shared"))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the schema's canonical MessagePack form."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).hexdigest()

    def zeros(self) -> Tensors:
        """A fresh float32 array of zeros per tensor."""
        return {spec.name: np.zeros(spec.shape, np.float32) for spec in self.tensors}

    def check(self, tensors: Mapping[str, NDArray[np.generic]]) -> None:
        """Raise unless `tensors` has exactly these names, shapes and dtypes and finite values.

        Raises:
            SchemaMismatchError: a name, shape or dtype differs.
            NotFiniteError: a value is NaN or infinite.
        """
        expected = {spec.name for spec in self.tensors}
        if tensors.keys() != expected:
            missing = sorted(expected - tensors.keys())
            extra = sorted(tensors.keys() - expected)
            raise SchemaMismatchError(f"tensors missing {missing}, not in the schema {extra}")
        for spec in self.tensors:
            array = tensors[spec.name]
            if array.dtype != np.float32 or array.shape != spec.shape:
                raise SchemaMismatchError(
                    f"{spec.name}: {array.dtype}{list(array.shape)}, "
                    f"expected {spec.dtype}{list(spec.shape)}"
                )
            if not np.isfinite(array).all():
                raise NotFiniteError(f"{spec.name} has values that are not finite")


def tensors_digest(schema: Schema, tensors: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 (hex) over the schema's digest and each tensor's little-endian float32 bytes."""
    digest = hashlib.sha256(bytes.fromhex(schema.digest))
    for spec in schema.tensors:
        digest.update(np.ascontiguousarray(tensors[spec.name], dtype="<f4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Manifest:
    """A task's model: initial tensors by name, and what is to be done with each.

    Args:
        tensors: name -> array. float64 and integer arrays are converted to float32; the order of
            the dict is the order on the wire.
        parts: name -> "shared" | "personal" | "frozen" for tensors that are not shared.
        artefact: an optional `.tflite` file that trainers of the task need.
        flops_per_example: floating-point operations of one training step per example; the default
            is 6 per parameter (2 forward, 4 backward), the usual estimate for dense models.

    Raises:
        ManifestError: no tensors, too many, a bad name, or values that are not finite.
    """

    tensors: Tensors
    parts: Mapping[str, Part] = field(default_factory=dict)
    artefact: bytes | None = None
    flops_per_example: float | None = None

    def __post_init__(self) -> None:
        if not self.tensors:
            raise ManifestError("a model needs at least one tensor")
        if len(self.tensors) > limits.TENSORS_MAX:
            raise ManifestError(f"{len(self.tensors)} tensors, at most {limits.TENSORS_MAX}")
        unknown = sorted(set(self.parts) - set(self.tensors))
        if unknown:
            raise ManifestError(f"parts names tensors that do not exist: {unknown}")
        wrong = sorted({part for part in self.parts.values() if part not in get_args(Part)})
        if wrong:
            raise ManifestError(f"parts are {', '.join(get_args(Part))}, not {wrong}")
        converted: Tensors = {}
        for name, value in self.tensors.items():
            if not name or len(name) > limits.NAME_CHARS_MAX:
                raise ManifestError(
                    f"tensor name {name!r}: 1 to {limits.NAME_CHARS_MAX} characters"
                )
            with np.errstate(over="ignore"):
                array = np.ascontiguousarray(value, dtype=np.float32).reshape(np.shape(value))
            if array.ndim > limits.TENSOR_RANK_MAX:
                raise ManifestError(f"{name}: rank {array.ndim}, at most {limits.TENSOR_RANK_MAX}")
            if not np.isfinite(array).all():
                raise ManifestError(f"{name}: initial values are not finite")
            converted[name] = array
        object.__setattr__(self, "tensors", converted)
        if self.schema.parameters > limits.MODEL_PARAMETERS_MAX:
            raise ManifestError(
                f"{self.schema.parameters} parameters, at most {limits.MODEL_PARAMETERS_MAX}"
            )

    @property
    def schema(self) -> Schema:
        """The schema of all tensors, in order."""
        return Schema(
            tuple(
                TensorSpec(name=name, shape=array.shape, part=self.parts.get(name, "shared"))
                for name, array in self.tensors.items()
            )
        )

    def complete(self, *known: Tensors) -> Tensors:
        """All tensors in order: each from the first of `known` that has it, else as it began."""
        return {
            name: next((part[name] for part in known if name in part), first)
            for name, first in self.tensors.items()
        }

    @property
    def step_flops(self) -> float:
        """Floating-point operations of one training step per example (an estimate)."""
        if self.flops_per_example is not None:
            return self.flops_per_example
        return 6.0 * self.schema.parameters


def check_schema(schema: Schema) -> None:
    """Raise unless a schema from the network is within every bound.

    Raises:
        TooLargeError: too many tensors, dimensions or parameters.
        SchemaMismatchError: a repeated or empty name, or a negative dimension.
    """
    if len(schema.tensors) > limits.TENSORS_MAX:
        raise TooLargeError(f"{len(schema.tensors)} tensors, at most {limits.TENSORS_MAX}")
    names = {spec.name for spec in schema.tensors}
    if len(names) != len(schema.tensors) or "" in names:
        raise SchemaMismatchError("tensor names are empty or repeated")
    for spec in schema.tensors:
        if len(spec.name) > limits.NAME_CHARS_MAX or len(spec.shape) > limits.TENSOR_RANK_MAX:
            raise TooLargeError(f"{spec.name[:64]}: name or rank passes its bound")
        if any(dimension < 0 for dimension in spec.shape):
            raise SchemaMismatchError(f"{spec.name}: negative dimension in {list(spec.shape)}")
        # An empty tensor may hide a dimension that no array can have.
        if math.prod(filter(None, spec.shape)) > limits.MODEL_PARAMETERS_MAX:
            raise TooLargeError(f"{spec.name}: dimensions {list(spec.shape)} pass their bound")
    if schema.parameters > limits.MODEL_PARAMETERS_MAX:
        raise TooLargeError(
            f"{schema.parameters} parameters, at most {limits.MODEL_PARAMETERS_MAX}"
        )
