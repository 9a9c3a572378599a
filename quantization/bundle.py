"""What brings a device to a model version: payloads in a row, each added to what came before.

    offset  bytes  field, little-endian
    0       1      layout, 1
    1       8      version that the first step starts from, signed; -1 starts from nothing
    9       2      number of steps
    11      ...    per step: version u64, payload bytes u32, payload

Applying a step is one multiply and one add in float32 per parameter, so every CPU arrives at the
same bits, which the model's digest then proves.
"""

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

from quantization.payload import decode
from wire import Schema, Tensors, limits
from wire.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnsupportedVersionError,
)

LAYOUT: Final = 1
_HEAD: Final = struct.Struct("<BqH")
_STEP: Final = struct.Struct("<QI")


@dataclass(frozen=True, slots=True)
class Step:
    """The payload that leads to `version` from the step before it."""

    version: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """Steps from `from_version` (-1: from nothing) to the last step's version."""

    from_version: int
    steps: tuple[Step, ...]


def pack_bundle(from_version: int, steps: tuple[Step, ...]) -> bytes:
    """A bundle's bytes.

    Raises:
        LocalProtocolError: no steps, or more than `limits.DELTAS_PER_BUNDLE_MAX`.
    """
    if not 1 <= len(steps) <= limits.DELTAS_PER_BUNDLE_MAX:
        raise LocalProtocolError(f"{len(steps)} steps, 1 to {limits.DELTAS_PER_BUNDLE_MAX}")
    parts = [_HEAD.pack(LAYOUT, from_version, len(steps))]
    for step in steps:
        parts += (_STEP.pack(step.version, len(step.payload)), step.payload)
    return b"".join(parts)


def unpack_bundle(data: bytes) -> Bundle:
    """The inverse of `pack_bundle`.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """
    if len(data) < _HEAD.size:
        raise TruncatedError(f"a bundle has at least {_HEAD.size} bytes, got {len(data)}")
    layout, from_version, count = _HEAD.unpack_from(data)
    if layout != LAYOUT:
        raise UnsupportedVersionError(f"bundle layout {layout} is not known")
    if not 1 <= count <= limits.DELTAS_PER_BUNDLE_MAX:
        raise TooLargeError(f"{count} steps, 1 to {limits.DELTAS_PER_BUNDLE_MAX}")
    if from_version < -1:
        raise RemoteProtocolError(f"a bundle from version {from_version}")
    at, last, steps = _HEAD.size, from_version, []
    for _ in range(count):
        if len(data) - at < _STEP.size:
            raise TruncatedError("a step is cut off")
        version, size = _STEP.unpack_from(data, at)
        at += _STEP.size
        if size > len(data) - at:
            raise TruncatedError(f"{len(data) - at} of {size} bytes of a step")
        if version <= last:
            raise RemoteProtocolError(f"version {version} after {last}")
        steps.append(Step(version, data[at : at + size]))
        at, last = at + size, version
    if at != len(data):
        raise TrailingBytesError(f"{len(data) - at} bytes after the last step")
    return Bundle(from_version, tuple(steps))


def apply_bundle(bundle: Bundle, schema: Schema, held: Tensors) -> Tensors:
    """Fresh tensors: `held` (ignored when the bundle starts from nothing) plus every step.

    Raises:
        RemoteProtocolError: a payload is not one of this schema.
        SchemaMismatchError: `held` is not, and the bundle starts from it.
        NotFiniteError: a sum leaves float32.
    """
    if bundle.from_version >= 0:
        schema.check(held)
    tensors = held
    for step in bundle.steps:
        change = decode(step.payload, schema)
        # The first step from nothing is the model itself: 0.0 + -0.0 would be another bit pattern.
        whole = bundle.from_version < 0 and step is bundle.steps[0]
        if whole:
            tensors = change
            continue
        with np.errstate(over="ignore"):
            tensors = {name: tensors[name] + change[name] for name in change}
        schema.check(tensors)
    return tensors
