"""A task's manifest as bytes: what a device fetches that has no `task.model()` of its own.

    offset  bytes  field
    0       1      layout, 1
    1       4      bytes of the words, little-endian
    5       ...    words: a MessagePack map of schema, head, flops_per_example and artefact
    ...     ...    values: every tensor's first values, little-endian float32, in the schema's order
    ...     ...    the artefact's file, if there is one

The shared tensors' values are among them although devices could fetch a version for those: an
artefact's trial starts from the task's first values (`wire.artefact.Probe`), and a device that has
them holds version 0 and is sent deltas from there.

The words come first and say all sizes, so nothing is allocated that they do not account for, and
one manifest has one form: the same bytes on every machine. Their SHA-256 is the description's
digest. Nothing in it names code, and its file is not opened here.
"""

import hashlib
import struct
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Final

import msgspec
import numpy as np
from msgspec import Meta

from wire import limits
from wire.artefact import Artefact, ArtefactInfo
from wire.errors import (
    NotFiniteError,
    PotluckError,
    RemoteProtocolError,
    SchemaMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnsupportedVersionError,
)
from wire.manifest import Manifest, ManifestError, Schema, Tensors, check_schema
from wire.messages import is_finite

LAYOUT: Final = 1
_HEADER: Final = struct.Struct("<BI")
_VALUE_BYTES: Final = 4


class Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a description says in words; sizes follow from it."""

    schema: Schema
    head: Annotated[tuple[str, ...], Meta(max_length=limits.TENSORS_MAX)]
    flops_per_example: Annotated[float, Meta(ge=0.0)] | None
    artefact: ArtefactInfo | None

    @property
    def payload_bytes(self) -> int:
        """What follows the words."""
        file_bytes = 0 if self.artefact is None else self.artefact.file_bytes
        return _VALUE_BYTES * self.schema.parameters + file_bytes


_decoder: Final = msgspec.msgpack.Decoder(Words)


class Description:
    """A manifest that can be sent.

    Args:
        manifest: of a task.

    Attributes:
        digest: SHA-256 of the payload, 32 bytes.
        payload_bytes: how long it is.

    Raises:
        ManifestError: the artefact is not of these tensors, or not the file that it speaks of, or
            says what no device would take.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._head = _head_of(manifest)
        digest = hashlib.sha256()
        self.payload_bytes = 0
        for piece in self._pieces():
            digest.update(piece)
            self.payload_bytes += len(piece)
        self.digest = digest.digest()

    @cached_property
    def payload(self) -> bytes:
        """All of it; made when somebody first asks, since few coordinators ever need it."""
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        yield self._head
        for array in self._manifest.tensors.values():
            yield np.ascontiguousarray(array, dtype="<f4").tobytes()
        if self._manifest.artefact is not None:
            yield self._manifest.artefact.data


def _head_of(manifest: Manifest) -> bytes:
    """Header and words.

    Raises:
        ManifestError: see `Description`.
    """
    artefact, flops = manifest.artefact, manifest.flops_per_example
    words = Words(
        schema=manifest.schema,
        head=tuple(manifest.head),
        flops_per_example=None if flops is None else float(flops),
        artefact=None if artefact is None else artefact.info,
    )
    try:
        # Structs that code has made hold whatever it gave them: numbers take their types here.
        words = _read(msgspec.msgpack.encode(words), canonical=False)
        if artefact is not None:
            artefact.check()
    except RemoteProtocolError as error:
        raise ManifestError(f"the model cannot be described to a device: {error}") from error
    written = msgspec.msgpack.encode(words)
    return _HEADER.pack(LAYOUT, len(written)) + written


def read_description(payload: bytes) -> Manifest:
    """The manifest that a description is of; its artefact has the promised length and hash.

    Raises:
        TruncatedError, TrailingBytesError, TooLargeError: its length is not what it says, or passes
            a bound.
        UnsupportedVersionError: another layout.
        SchemaMismatchError: tensors that no model can have, or an artefact of other ones.
        NotFiniteError: a value is NaN or infinite.
        DigestMismatchError: the artefact is another file.
        RemoteProtocolError: it is malformed, or not in its one form.
    """
    if len(payload) < _HEADER.size:
        raise TruncatedError(f"a description has at least {_HEADER.size} bytes")
    layout, size = _HEADER.unpack_from(payload)
    if layout != LAYOUT:
        raise UnsupportedVersionError(f"a description of layout {layout}")
    if size > limits.DESCRIPTION_WORDS_BYTES_MAX:
        raise TooLargeError(f"words of {size} bytes, at most {limits.DESCRIPTION_WORDS_BYTES_MAX}")
    start = _HEADER.size + size
    if len(payload) < start:
        raise TruncatedError(f"{len(payload) - _HEADER.size} of {size} bytes of words")
    words = _read(payload[_HEADER.size : start])
    end = start + words.payload_bytes
    if len(payload) < end:
        raise TruncatedError(f"a description of {len(payload)} bytes, and it says {end}")
    if len(payload) > end:
        raise TrailingBytesError(f"{len(payload) - end} bytes after the description")
    tensors, file_at = _values(words.schema, payload, start)
    artefact = None
    if words.artefact is not None:
        artefact = Artefact(payload[file_at:], words.artefact)
        artefact.check()
    try:
        return Manifest(
            tensors,
            parts={spec.name: spec.part for spec in words.schema.tensors},
            artefact=artefact,
            flops_per_example=words.flops_per_example,
            head=words.head,
        )
    except PotluckError as error:
        raise SchemaMismatchError(str(error)) from error


def _read(data: bytes, *, canonical: bool = True) -> Words:
    """Decode the words and check all that they say by themselves.

    Raises:
        RemoteProtocolError: or the subclass that names what is wrong.
    """
    try:
        words = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"the description: {error}") from error
    if not is_finite(words):
        raise NotFiniteError("the description has a number that is not finite")
    if canonical and msgspec.msgpack.encode(words) != data:
        raise RemoteProtocolError("the description is not in its one form")
    check_schema(words.schema)
    if words.artefact is not None and words.artefact.parameters != words.schema.tensors:
        raise SchemaMismatchError("the artefact's parameters are not the model's tensors, in order")
    return words


def _values(schema: Schema, payload: bytes, start: int) -> tuple[Tensors, int]:
    """Every tensor's first values, in arrays of their own, and where they end.

    Raises:
        NotFiniteError: a value is NaN or infinite.
    """
    tensors: Tensors = {}
    for spec in schema.tensors:
        # What comes behind words of any length is not aligned: a copy is.
        end = start + _VALUE_BYTES * spec.size
        found = np.frombuffer(memoryview(payload)[start:end], "<f4").astype(np.float32)
        if not np.isfinite(found).all():
            raise NotFiniteError(f"{spec.name} has values that are not finite")
        tensors[spec.name] = found.reshape(spec.shape)
        start = end
    return tensors, start
