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
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from wire import limits
from wire.errors import NotFiniteError, PotluckError, SchemaMismatchError, TooLargeError

if TYPE_CHECKING:
    from wire.artefact import Artefact

Part: TypeAlias = Literal["shared", "personal", "frozen"]
Tensors: TypeAlias = dict[str, NDArray[np.float32]]

# How statistics of a batch are called in PyTorch and in Keras.
STATISTICS: Final = (
    "running_mean",
    "running_var",
    "moving_mean",
    "moving_variance",
    "num_batches_tracked",
)
# Up to this every integer is a float32.
INTEGER_ABS_MAX: Final = 2**24


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
        tensors: name -> array of any float, integer or bool dtype, bfloat16 included. All are
            carried as float32; the order of the dict is the order on the wire.
        parts: name -> "shared" | "personal" | "frozen"; `part_of` decides for those that are not
            named, and then all are.
        artefact: an optional `.tflite` file that trainers of the task need.
        flops_per_example: floating-point operations of one training step per example; the default
            is 6 per parameter (2 forward, 4 backward), the usual estimate for dense models.
        head: the shared tensors that a device sends alone when its bytes do not do for all, the
            last layer's as a rule. They are no part of the schema.

    Raises:
        ManifestError: no tensors, too many, none that is shared, a bad name, another dtype, values
            that are not finite or do not fit float32, integers that are shared or too large.
    """

    tensors: Tensors
    parts: Mapping[str, Part] = field(default_factory=dict)
    artefact: "Artefact | None" = None
    flops_per_example: float | None = None
    head: tuple[str, ...] = ()

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
        parts: dict[str, Part] = {}
        for name, value in self.tensors.items():
            if not name or len(name) > limits.NAME_CHARS_MAX or "\0" in name:
                raise ManifestError(
                    f"tensor name {name!r}: 1 to {limits.NAME_CHARS_MAX} characters, none a NUL"
                )
            given = np.asarray(value)
            if given.ndim > limits.TENSOR_RANK_MAX:
                raise ManifestError(f"{name}: rank {given.ndim}, at most {limits.TENSOR_RANK_MAX}")
            parts[name] = part_of(name, given.dtype, self.parts.get(name))
            converted[name] = as_float32(name, given)
        if "shared" not in parts.values():
            raise ManifestError("no tensor is shared, so there is nothing to learn together")
        object.__setattr__(self, "tensors", converted)
        object.__setattr__(self, "parts", parts)
        self._check_head()
        if self.schema.parameters > limits.MODEL_PARAMETERS_MAX:
            raise ManifestError(
                f"{self.schema.parameters} parameters, at most {limits.MODEL_PARAMETERS_MAX}"
            )

    def _check_head(self) -> None:
        strangers = sorted(name for name in self.head if self.parts.get(name) != "shared")
        if strangers:
            raise ManifestError(f"head names tensors that are not shared: {strangers}")

    @property
    def schema(self) -> Schema:
        """The schema of all tensors, in order."""
        return Schema(
            tuple(
                TensorSpec(name=name, shape=array.shape, part=self.parts[name])
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


def part_of(name: str, dtype: np.dtype[Any], marked: Part | None = None) -> Part:
    """Which part of a model a tensor is: what the task says, or else this rule.

    An integer or bool is a counter or a mask: its mean over devices is none, so it is personal.
    Statistics of batches, by their names (`STATISTICS`, a Keras `:0` behind them aside), describe a
    device's own data and are personal too: FedBN (Li et al. 2021, section 3). A task may mark them
    shared; then they are averaged by weight like all else. Everything else is shared.

    Raises:
        ManifestError: an integer or bool is marked shared.
    """
    integer = dtype.kind in "iub"
    if marked == "shared" and integer:
        raise ManifestError(
            f"{name}: {dtype} cannot be shared, because a mean of integers is none; mark it"
            " personal or frozen, or make it float32"
        )
    if marked is not None:
        return marked
    return "personal" if integer or name.partition(":")[0].endswith(STATISTICS) else "shared"


def as_float32(name: str, given: NDArray[Any]) -> NDArray[np.float32]:
    """A contiguous float32 copy or view.

    Raises:
        ManifestError: it is no number, or not one that float32 can carry.
    """
    dtype = given.dtype
    if dtype.kind not in "fiub" and dtype.name != "bfloat16":
        raise ManifestError(f"{name}: {dtype} is no dtype of a model: float, integer or bool is")
    if dtype.kind in "iu" and given.size:
        largest = max(int(given.max()), -int(given.min()))
        if largest > INTEGER_ABS_MAX:
            raise ManifestError(
                f"{name}: {largest} is past {INTEGER_ABS_MAX}, up to which float32, in which it is"
                " carried, has every integer"
            )
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(given, dtype=np.float32).reshape(given.shape)
    if not np.isfinite(array).all():
        fits = "do not fit float32" if np.isfinite(given).all() else "are not finite"
        raise ManifestError(f"{name}: has values that {fits}")
    return array


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
