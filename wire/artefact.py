"""A trainable `.tflite` file and what both sides agree on about it.

The file is opened by native code that trusts it, so nothing of it is opened before these words
about it are held against the bytes: their length and hash, the operators in them, the tensors that
they take and give. `ArtefactInfo` is small, typed and signed with whatever carries it.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from wire import limits
from wire.errors import DigestMismatchError, TooLargeError
from wire.manifest import TensorSpec

Loss: TypeAlias = Literal["softmax", "sigmoid", "squared"]
Dtype: TypeAlias = Literal["float32", "int32"]
Dimension: TypeAlias = Annotated[int, Meta(ge=1, le=limits.MODEL_PARAMETERS_MAX)]
Shape: TypeAlias = Annotated[tuple[Dimension, ...], Meta(max_length=limits.TENSOR_RANK_MAX)]


class Probe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file is to compute, from inputs that everybody can make: see `probe_batch`.

    `losses` are those of training steps one after the other, from the task's first parameters,
    at `learning_rate`, each on a batch drawn with `seed`; `tolerance` is relative. `moves` are how
    far each parameter is then from where it began (L2), in the order of `ArtefactInfo.parameters`.
    `proximal_losses` and `proximal_moves` are those of the same steps with FedProx's `mu` and a
    gradient of at most `clip`. `marks` say which way each parameter went by the plain steps: how
    far along `probe_signs`. Adam goes as far on a wrong gradient as on a right one.
    """

    seed: Annotated[int, Meta(ge=0, le=2**53)]
    learning_rate: Annotated[float, Meta(gt=0.0, le=1e6)]
    losses: Annotated[tuple[float, ...], Meta(min_length=1, max_length=16)]
    tolerance: Annotated[float, Meta(gt=0.0, le=0.1)] = 1e-3
    moves: Annotated[tuple[float, ...], Meta(max_length=limits.TENSORS_MAX)] = ()
    proximal_losses: Annotated[tuple[float, ...], Meta(max_length=16)] = ()
    mu: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    clip: Annotated[float, Meta(ge=0.0, le=1e12)] = 0.0
    proximal_moves: Annotated[tuple[float, ...], Meta(max_length=limits.TENSORS_MAX)] = ()
    marks: Annotated[tuple[float, ...], Meta(max_length=limits.TENSORS_MAX)] = ()


class ArtefactInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a trainable file is and what it may contain.

    Shapes are of one example, without the batch. `x_values` and `classes` bound integers: ids are
    `0 ... x_values - 1`, labels `0 ... classes - 1`; 0 where x or y are real numbers. `parameters`
    are the tensors that `get_parameters` gives and `set_parameters` takes, in the manifest's order.
    `operators` has (built-in code, version) of each kind of operator in the file, sorted.
    """

    sha256: Annotated[bytes, Meta(min_length=32, max_length=32)]
    file_bytes: Annotated[int, Meta(ge=1, le=limits.TRANSFER_BYTES_MAX)]
    batch: Annotated[int, Meta(ge=1, le=limits.BATCH_MAX)]
    x_shape: Shape
    x_dtype: Dtype
    x_values: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    y_shape: Shape
    y_dtype: Dtype
    classes: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    loss: Loss
    parameters: Annotated[tuple[TensorSpec, ...], Meta(max_length=limits.TENSORS_MAX)]
    operators: Annotated[tuple[tuple[int, int], ...], Meta(max_length=512)]
    probe: Probe


@dataclass(frozen=True)
class Artefact:
    """A file and the words about it."""

    data: bytes
    info: ArtefactInfo

    def check(self) -> None:
        """Raise unless the bytes are those that `info` speaks of.

        Raises:
            TooLargeError: another length.
            DigestMismatchError: another hash.
        """
        if len(self.data) != self.info.file_bytes:
            raise TooLargeError(
                f"the artefact has {len(self.data)} bytes, not {self.info.file_bytes}"
            )
        if hashlib.sha256(self.data).digest() != self.info.sha256:
            raise DigestMismatchError("the artefact is not the file that its manifest names")


def probe_batch(info: ArtefactInfo, step: int) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Batch number `step` of a file's probe, x and y, each example with weight 1.

    Bits are those of NumPy's Philox with the key `seed + step`, x before y. Real x are in [-1, 1),
    real y in [0, 1); integers are below the bound that `info` has for them.
    """
    x_shape = (info.batch, *info.x_shape)
    y_shape = (info.batch, *info.y_shape)
    count = math.prod(x_shape)
    key = info.probe.seed + step
    raw = np.random.Philox(key=key).random_raw(count + math.prod(y_shape))
    bits = np.asarray(raw, np.uint64)
    x = _drawn(bits[:count], info.x_values)
    y = _drawn(bits[count:], info.classes)
    if not info.x_values:
        x = x * np.float32(2.0) - np.float32(1.0)
    return x.reshape(x_shape), y.reshape(y_shape)


def probe_signs(info: ArtefactInfo, number: int) -> NDArray[np.int8]:
    """1 or -1 for each element of parameter `number`, drawn as batches are, with a key of its own.

    What goes wrong by e (L2) in any way shows along them as e, in the root of the mean square.
    """
    shape = info.parameters[number].shape
    key = np.array([info.probe.seed, number + 1], np.uint64)
    bits = np.asarray(np.random.Philox(key=key).random_raw(math.prod(shape)), np.uint64)
    return ((bits >> np.uint64(63)).astype(np.int8) * np.int8(2) - np.int8(1)).reshape(shape)


def _drawn(bits: NDArray[np.uint64], bound: int) -> NDArray[Any]:
    """Integers below the bound; without one, float32 in [0, 1) of 24 bits."""
    if bound:
        return (bits % np.uint64(bound)).astype(np.int32)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
