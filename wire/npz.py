"""Named arrays in an `.npz` file: what `numpy.savez` writes, without its pickles.

NumPy's own functions take names as keyword arguments, so that an array cannot be called `file`, and
mix up `x` and `x.npy`. These take any name without a NUL, and write the same bytes for the same
arrays.

A file that is written `aligned` is an `.npz` like any other, in which each array's data begins at a
multiple of 64 bytes: `mapped` gives its arrays as views of the file, without a copy.
"""

import io
import mmap
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wire.errors import LocalProtocolError

_SUFFIX: Final = ".npy"
# What NumPy aligns its own arrays to, and vector instructions like.
ALIGNMENT: Final = 64
# APPNOTE.TXT 4.3.7: signature, ten numbers, and how long the name and the extra field are.
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_LOCAL_MAGIC: Final = b"PK\x03\x04"
# An extra field of sizes that do not fit 32 bits, which `force_zip64` always writes.
_ZIP64_BYTES: Final = 20
# The extra field that Android's zipalign pads with: id, length, alignment, zeros.
_PADDING: Final = struct.Struct("<3H")
_PADDING_ID: Final = 0xD935
# A header of a member says no more than dtype, order and shape.
_HEADER_BYTES_MAX: Final = 4_096
_ENCRYPTED: Final = 0x1


class NpzError(LocalProtocolError):
    """Bytes that are no `.npz` of plain arrays; the text says why."""


def read(file: BinaryIO) -> dict[str, NDArray[Any]]:
    """The arrays of a file, in its order.

    Raises:
        NpzError: it is no `.npz`, it is damaged, or an array is one of Python objects.
    """
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise NpzError("is no .npz; write it with numpy.savez") from error
    arrays: dict[str, NDArray[Any]] = {}
    with archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(_SUFFIX)
            if name == member.filename:
                raise NpzError(f"holds {name!r}, which is no array; write it with numpy.savez")
            if name in arrays:
                raise NpzError(f"holds {name!r} twice")
            arrays[name] = _member(archive, member, name)
    return arrays


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    try:
        with archive.open(member) as stream:
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
            if stream.read(1):
                raise NpzError(f"{name}: there is more than an array")
    except (
        *(OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, RuntimeError),
        *(tokenize.TokenError, MemoryError, OverflowError, zlib.error, zipfile.BadZipFile),
    ) as error:
        what = str(error).partition("\n")[0]
        if "pickle" in what or "Object arrays" in what:
            what = "is an array of Python objects, which would have to be run to be read"
        raise NpzError(f"{name}: {what or type(error).__name__}") from error
    return array


def write(file: BinaryIO, arrays: Mapping[str, NDArray[Any]], *, aligned: bool = False) -> None:
    """Write arrays, uncompressed; none of Python objects. `file` is at its beginning.

    Raises:
        NpzError: a name that a zip cannot have: it ends at a NUL.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # A date of its own would make other bytes each time.
            member = zipfile.ZipInfo(name + _SUFFIX)
            if "\0" in name:
                raise NpzError(f"{name!r}: an .npz has no names with a NUL")
            if aligned:
                member.extra = _padding(file.tell(), len(member.filename.encode()))
            with archive.open(member, "w", force_zip64=True) as stream:
                npy.write_array(stream, np.asanyarray(array), allow_pickle=False)


def _padding(header_at: int, name_bytes: int) -> bytes:
    """An extra field after which a member's data is aligned; NumPy's own header keeps it so."""
    data_at = header_at + _LOCAL.size + name_bytes + _ZIP64_BYTES + _PADDING.size
    zeros = -data_at % ALIGNMENT
    # What is behind id and length: the alignment itself, and the zeros.
    return _PADDING.pack(_PADDING_ID, 2 + zeros, ALIGNMENT) + bytes(zeros)


def to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What `write` writes."""
    buffer = io.BytesIO()
    write(buffer, arrays)
    return buffer.getvalue()


def mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file, in its order, as read-only views of it; checked once, here.

    All processes that map a file share its pages. The map lives as long as one of the arrays does,
    also when the file is deleted (POSIX) or another takes its place. A file that somebody makes
    shorter *while* it is mapped is a fault of the whole process, which nothing here can catch:
    write beside it and rename.

    An array that does not lie at a multiple of its own items' size, or is compressed, is read into
    memory instead.

    Raises:
        NpzError: it is no `.npz`, it is cut short or damaged, or an array is one of Python objects.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise NpzError("is no .npz; write it with numpy.savez") from error
        with archive:
            # Only now: an empty file cannot be mapped, and is no zip either.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            arrays: dict[str, NDArray[Any]] = {}
            for member in archive.infolist():
                name = member.filename.removesuffix(_SUFFIX)
                if name == member.filename:
                    raise NpzError(f"holds {name!r}, which is no array; write it with numpy.savez")
                if name in arrays:
                    raise NpzError(f"holds {name!r} twice")
                view = _view(data, member, name)
                arrays[name] = _member(archive, member, name) if view is None else view
    return arrays


def _view(data: mmap.mmap, member: zipfile.ZipInfo, name: str) -> NDArray[Any] | None:
    """A member's array where it lies, None when it cannot be looked at there.

    Raises:
        NpzError: the member is not within the file, is not what its checksum says, or no array.
    """
    stored = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED
    if not stored or member.file_size != member.compress_size:
        return None
    start = _data_at(data, member.header_offset, name)
    end = start + member.file_size
    if end > len(data):
        raise NpzError(f"{name}: ends at byte {end} of {len(data)}")
    with memoryview(data) as whole, whole[start:end] as bytes_of_member:
        if zlib.crc32(bytes_of_member) != member.CRC:
            raise NpzError(f"{name}: is damaged: its checksum is another")
        header = io.BytesIO(bytes_of_member[:_HEADER_BYTES_MAX])
    try:
        version = npy.read_magic(header)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(header)
        items = int(np.prod(shape, dtype=object)) if shape else 1
    except (ValueError, SyntaxError, TypeError, tokenize.TokenError, EOFError) as error:
        raise NpzError(f"{name}: {str(error).partition(chr(10))[0]}") from error
    if dtype.hasobject or version not in ((1, 0), (2, 0)):
        return None  # `read` says what is wrong with it, or reads it
    at = start + header.tell()
    if at + items * dtype.itemsize != end:
        raise NpzError(f"{name}: {end - at} bytes for {list(shape)} of {dtype}")
    if at % dtype.alignment:
        return None
    if not dtype.itemsize:
        return None  # nothing lies there
    flat = np.frombuffer(data, dtype, items, at) if items else np.empty(0, dtype)
    try:
        array = flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError) as error:
        raise NpzError(f"{name}: {error}") from error
    array.flags.writeable = False
    return array


def _data_at(data: mmap.mmap, header_at: int, name: str) -> int:
    """Where a member's bytes begin; its local header says how long itself is."""
    header = data[header_at : header_at + _LOCAL.size] if header_at >= 0 else b""
    if len(header) < _LOCAL.size or header[:4] != _LOCAL_MAGIC:
        raise NpzError(f"{name}: there is no such member where the file says")
    *_fields, name_bytes, extra_bytes = _LOCAL.unpack(header)
    return header_at + _LOCAL.size + int(name_bytes) + int(extra_bytes)
