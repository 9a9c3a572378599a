"""Named arrays in an `.npz` file: what `numpy.savez` writes, without its pickles.

NumPy's own functions take names as keyword arguments, so that an array cannot be called `file`, and
mix up `x` and `x.npy`. These take any name without a NUL, and write the same bytes for the same
arrays.
"""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wire.errors import LocalProtocolError

_SUFFIX: Final = ".npy"


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


def write(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays, uncompressed; none of Python objects.

    Raises:
        NpzError: a name that a zip cannot have: it ends at a NUL.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # A date of its own would make other bytes each time.
            member = zipfile.ZipInfo(name + _SUFFIX)
            if "\0" in name:
                raise NpzError(f"{name!r}: an .npz has no names with a NUL")
            with archive.open(member, "w", force_zip64=True) as stream:
                npy.write_array(stream, np.asanyarray(array), allow_pickle=False)


def to_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What `write` writes."""
    buffer = io.BytesIO()
    write(buffer, arrays)
    return buffer.getvalue()
