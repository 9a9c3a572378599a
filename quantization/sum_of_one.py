"""`secagg_int` without anybody to be summed with: what its words make of one update.

Under secure aggregation devices send words whose masked sum is decoded, and all that shapes them
is the round's. A file has neither a round nor other devices: here one update is clipped to its own
norm, which leaves it as it is, and made into words of which ten could be added; the sum of one is
decoded. It shows rotation, step, rounding and size. It has no masks and hides nothing.
"""

import math
import zlib
from typing import Final

import msgspec
import numpy as np

from quantization.codecs import VALUE_ABS_MAX, number_in
from quantization.secagg import SecaggInt
from wire import Schema, Tensors, TensorSpec
from wire.errors import (
    DigestMismatchError,
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
)

SECAGG_INT: Final = "secagg_int"
_DEVICES: Final = 10
_MODULUS_BITS: Final = 8
_SEED_MASK: Final = 2**64 - 1


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parameters of `SecaggInt` but its schema, and the CRC-32 of the words."""

    round_seed: int
    devices_max: int
    clip_norm: float
    modulus_bits: int
    keep_fraction: float
    check: int


def share_in(spec: str) -> float:
    """The share of coordinates that `secagg_int` or `secagg_int:SHARE` keeps.

    Raises:
        LocalProtocolError: it is none.
    """
    _name, colon, text = spec.partition(":")
    share = number_in(spec, text) if colon else 1.0
    if share > 1.0:
        raise LocalProtocolError(f"codec {spec}: a share is at most 1")
    return share


def encode_words(spec: str, tensors: Tensors, schema: Schema, seed: int) -> tuple[Words, bytes]:
    """Tensors, float32 and exactly the schema's, to words.

    Raises:
        LocalProtocolError: see `share_in`.
        NotFiniteError: the norm of all is above 1e37, or what is read leaves float32.
    """
    norm = math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in tensors.values()))
    if norm > VALUE_ABS_MAX:
        raise NotFiniteError(f"the norm of all arrays is above {VALUE_ABS_MAX:g}")
    words = Words(seed & _SEED_MASK, _DEVICES, norm or 1.0, _MODULUS_BITS, share_in(spec), 0)
    codec = _codec(words, schema)
    payload = codec.pack(codec.encode(tensors, noise_seed=words.round_seed))
    words = msgspec.structs.replace(words, check=zlib.crc32(payload))
    decode_words(words, payload, schema)
    return words, payload


def check_words(words: Words, payload: bytes, schema: Schema) -> None:
    """Raise unless words are whole and may be read.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """
    if zlib.crc32(payload) != words.check:
        raise DigestMismatchError("the words were damaged")
    size = _codec(words, schema).payload_bytes
    if len(payload) != size:
        raise SchemaMismatchError(f"{len(payload)} bytes of words, not {size}")


def decode_words(words: Words, payload: bytes, schema: Schema) -> Tensors:
    """The inverse of `encode_words`, but for what rounding and the share left out.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """
    check_words(words, payload, schema)
    codec = _codec(words, schema)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        tensors = codec.decode_sum(codec.unpack(payload), 1)
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise NotFiniteError(f"{name}: has values that are not finite")
    return tensors


def _codec(words: Words, schema: Schema) -> SecaggInt:
    every = Schema(tuple(TensorSpec(spec.name, spec.shape) for spec in schema.tensors))
    try:
        return SecaggInt(
            every,
            words.round_seed,
            words.devices_max,
            words.clip_norm,
            words.modulus_bits,
            words.keep_fraction,
        )
    except LocalProtocolError as error:
        raise RemoteProtocolError(f"words that nobody can have made: {error}") from error
