"""A payload in a file that says itself what it holds: what `potluck codec encode` writes.

    bytes  field, little-endian
    4      "PLUK"
    1      version, 1
    4      bytes of the description, u32
    4      CRC-32 of the description
    ...    description, canonical MessagePack: the schema, as its digest is taken of it, dtypes, and
           of `secagg_int` its parameters (`sum_of_one`)
    ...    payload, up to the end; of `secagg_int` packed words

On the wire both sides know the schema; here it comes out of a file that may be anybody's, so it is
held against every bound before anything of its size is allocated. Tensors come back in the dtype
that they had, integers as the nearest ones.
"""

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from quantization.auto import AutoRule
from quantization.codecs import check_spec, name_of
from quantization.payload import Payload, codec_of, decode, encode
from quantization.sum_of_one import (
    SECAGG_INT,
    Words,
    check_words,
    decode_words,
    encode_words,
    share_in,
)
from wire import Schema, Tensors, TensorSpec
from wire.errors import (
    DigestMismatchError,
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
    TooLargeError,
    TruncatedError,
    UnsupportedVersionError,
)
from wire.manifest import as_float32, check_schema

MAGIC: Final = b"PLUK"
VERSION: Final = 1
# 4,096 tensors of 64 characters and 8 dimensions each, with room.
DESCRIPTION_BYTES_MAX: Final = 4 * 2**20
BFLOAT16: Final = "bfloat16"
DTYPES: Final = frozenset(
    f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)
) - {"float8"} | {"bool", BFLOAT16}
_HEAD: Final = struct.Struct("<4sBII")


class _Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    schema: Schema
    dtypes: tuple[str, ...]
    words: Words | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """A container that has been read and found right; its tensors are not decoded yet.

    Attributes:
        schema: names, shapes, order.
        dtypes: what the tensors were, by name.
        codec: what the sender was asked for.
        codecs: the codec of each tensor by name; None for one without values.
        payload: what would travel.
        words: how it is read if the codec is `secagg_int`, else None.
    """

    schema: Schema
    dtypes: dict[str, str]
    codec: str
    codecs: dict[str, str | None]
    payload: bytes
    words: Words | None = None

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Fresh arrays in the dtypes that they had.

        Raises:
            RemoteProtocolError: or the subclass that names what was wrong.
            LocalProtocolError: a tensor is bfloat16, and the package that knows it is not here.
        """
        decoded = _decode(self.payload, self.schema, self.words)
        return {name: restore(name, decoded[name], self.dtypes[name]) for name in decoded}


def pack_container(
    spec: str, arrays: Mapping[str, NDArray[Any]], *, seed: int, rule: AutoRule | None = None
) -> bytes:
    """Arrays of any float, integer or bool dtype to a container.

    Args:
        spec: see `check_container_spec`.
        arrays: in their order; in any byte order, which is not kept.
        seed: see `encode`.
        rule: see `encode`.

    Raises:
        LocalProtocolError: no such codec, no arrays, a dtype that a model cannot have, or values
            that would not come back in their dtype.
        ManifestError: values that are not finite or do not fit float32.
        RemoteProtocolError: a name is empty or too long, an array too large, a value above 1e37.
        PayloadBudgetError: see `encode`.
    """
    if not arrays:
        raise LocalProtocolError("there are no arrays to encode")
    for name, array in arrays.items():
        if array.dtype.name not in DTYPES:
            known = ", ".join(sorted(DTYPES))
            raise LocalProtocolError(f"{name}: has dtype {array.dtype}; make it one of {known}")
    schema = Schema(tuple(TensorSpec(name, array.shape) for name, array in arrays.items()))
    check_schema(schema)
    tensors: Tensors = {name: as_float32(name, array) for name, array in arrays.items()}
    words = None
    if name_of(spec) == SECAGG_INT:
        words, payload = encode_words(spec, tensors, schema, seed)
    else:
        payload = encode(spec, tensors, schema, seed=seed, rule=rule)
    dtypes = tuple(array.dtype.name for array in arrays.values())
    if set(dtypes) - {"float32", "float64", BFLOAT16}:
        # Rounding may go up: better said here than to whoever reads it.
        for name, values in _decode(payload, schema, words).items():
            try:
                restore(name, values, arrays[name].dtype.name)
            except NotFiniteError as error:
                raise LocalProtocolError(
                    f"{name}: {spec} makes values of it that {arrays[name].dtype} has not; take a"
                    " finer codec, or make it float32"
                ) from error
    description = msgspec.msgpack.encode(_Description(schema, dtypes, words))
    head = _HEAD.pack(MAGIC, VERSION, len(description), zlib.crc32(description))
    return head + description + payload


def open_container(data: bytes) -> Container:
    """Read a container, but for its tensors.

    Raises:
        RemoteProtocolError: or the subclass that names what was wrong.
    """
    description, payload = _description_of(data)
    schema = description.schema
    codecs: tuple[str | None, ...]
    if description.words is not None:
        check_words(description.words, payload, schema)
        codec = SECAGG_INT
        codecs = tuple(SECAGG_INT if tensor.size else None for tensor in schema.tensors)
    else:
        codecs = Payload(payload, schema).codecs
        codec = codec_of(payload)
    names = [tensor.name for tensor in schema.tensors]
    return Container(
        schema,
        dict(zip(names, description.dtypes, strict=True)),
        codec,
        dict(zip(names, codecs, strict=True)),
        payload,
        description.words,
    )


def _description_of(data: bytes) -> tuple[_Description, bytes]:
    """A description that has been held against every bound, and the payload behind it."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise RemoteProtocolError("it does not begin with PLUK")
    if len(data) < _HEAD.size:
        raise TruncatedError(f"{len(data)} bytes, {_HEAD.size} at the least")
    _magic, version, size, check = _HEAD.unpack_from(data)
    if version != VERSION:
        raise UnsupportedVersionError(f"version {version} is not known")
    if size > DESCRIPTION_BYTES_MAX:
        raise TooLargeError(f"a description of {size} bytes, at most {DESCRIPTION_BYTES_MAX}")
    if size > len(data) - _HEAD.size:
        raise TruncatedError(f"{len(data) - _HEAD.size} of {size} bytes of the description")
    text = data[_HEAD.size : _HEAD.size + size]
    if zlib.crc32(text) != check:
        raise DigestMismatchError("the description was damaged")
    try:
        description = msgspec.msgpack.decode(text, type=_Description)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"the description is none: {error}") from error
    schema = description.schema
    check_schema(schema)
    if len(description.dtypes) != len(schema.tensors) or not set(description.dtypes) <= DTYPES:
        raise SchemaMismatchError("dtypes are not those of the tensors")
    if msgspec.msgpack.encode(description) != text:
        raise RemoteProtocolError("the description is not in its canonical form")
    return description, data[_HEAD.size + size :]


def check_container_spec(spec: str) -> str:
    """A codec that a container can have, if it is one: any codec's, or `secagg_int[:SHARE]`.

    Raises:
        LocalProtocolError: it is not.
    """
    if name_of(spec) != SECAGG_INT:
        return check_spec(spec)
    share_in(spec)
    return spec


def _decode(payload: bytes, schema: Schema, words: Words | None) -> Tensors:
    if words is None:
        return decode(payload, schema)
    return decode_words(words, payload, schema)


def restore(name: str, values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Float32 as another dtype: the nearest values that it has.

    Raises:
        NotFiniteError: a value is out of the dtype's range.
        LocalProtocolError: it is bfloat16, and `ml_dtypes` is not installed.
    """
    if dtype == BFLOAT16:
        return values.astype(_bfloat16())
    target = np.dtype(dtype)
    if target.kind == "f":
        with np.errstate(over="ignore"):
            floats = values.astype(target)
        if not np.isfinite(floats).all():
            raise NotFiniteError(f"{name}: decoded, it has values that {dtype} has not")
        return floats
    rounded = np.rint(values, dtype=np.float64)
    low, high = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
    # As floats the ends of 64 bits are rounded: the upper one is past the range then.
    if ((rounded < float(low)) | (rounded >= float(high) + 1.0)).any():
        raise NotFiniteError(f"{name}: decoded, it has values that {dtype} has not")
    return rounded.astype(target)


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes  # noqa: PLC0415 - nothing else needs it
    except ImportError as error:
        raise LocalProtocolError(
            "a tensor is bfloat16: pip install ml_dtypes to have it back"
        ) from error
    made: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return made
