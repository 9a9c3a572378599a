"""A reader of flatbuffers that trusts nothing.

It reads what it is asked for and no more: tables, vectors, strings and scalars, each only after its
place was held against the length of the file. Devices have no package for this: tflite-runtime
brings none, and the one that there is does not look where it reads.

The format: https://flatbuffers.dev/internals. A table begins with the distance back to its vtable,
which has its own size, the table's size, and for each field its offset in the table, or 0.
"""

import struct
from typing import Final

_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_SCALARS: Final = {
    name: struct.Struct(f"<{code}")
    for name, code in {"u8": "B", "i8": "b", "i32": "i", "u32": "I", "u64": "Q"}.items()
}
# What a table and a vtable begin with.
_HEAD: Final = 4
# More of one kind than any file that a small device trains has.
VECTOR_LENGTH_MAX: Final = 65_536
STRING_BYTES_MAX: Final = 256


class FlatbufferError(ValueError):
    """The bytes are no flatbuffer, or not such a one; the text says where it ends."""


class Table:
    """One table of a file, at a place where there is one."""

    __slots__ = ("_data", "_fields", "_place", "_size")

    def __init__(self, data: bytes, place: int) -> None:
        self._data = data
        self._place = place
        _within(data, place, 4, "a table")
        vtable = place - int(_I32.unpack_from(data, place)[0])
        _within(data, vtable, 4, "a table's list of fields")
        length, size = struct.unpack_from("<HH", data, vtable)
        self._size = int(size)
        if length < _HEAD or length % 2 or size < _HEAD or place % 4 or vtable % 2:
            raise FlatbufferError(f"at {place}: a table that cannot be")
        _within(data, vtable, length, "a table's list of fields")
        _within(data, place, self._size, "a table")
        self._fields: tuple[int, ...] = struct.unpack_from(f"<{length // 2 - 2}H", data, vtable + 4)

    @staticmethod
    def root(data: bytes, identifier: bytes) -> "Table":
        """The table that a file begins with.

        Raises:
            FlatbufferError: a file of another kind, or none.
        """
        if len(data) < 8 or data[4:8] != identifier:  # noqa: PLR2004 - an offset, an identifier
            raise FlatbufferError(f"is no {identifier.decode()} file")
        return Table(data, int(_U32.unpack_from(data, 0)[0]))

    @property
    def fields(self) -> tuple[int, ...]:
        """The numbers of those fields that are there."""
        return tuple(number for number, offset in enumerate(self._fields) if offset)

    def has(self, field: int) -> bool:
        """Whether the field is there at all."""
        return field < len(self._fields) and self._fields[field] != 0

    def scalar(self, field: int, kind: str, default: int = 0) -> int:
        """A number: `kind` is u8, i8, i32, u32 or u64."""
        if not self.has(field):
            return default
        reader = _SCALARS[kind]
        place = self._field(field, reader.size)
        if place % reader.size:
            raise FlatbufferError(f"at {place}: a number that is not aligned")
        return int(reader.unpack_from(self._data, place)[0])

    def table(self, field: int) -> "Table | None":
        """A table that the field points to."""
        return Table(self._data, self._target(field)) if self.has(field) else None

    def tables(self, field: int) -> list["Table"]:
        """A vector of tables."""
        start, count = self.vector(field, 4)
        places = range(start, start + 4 * count, 4)
        return [Table(self._data, at + int(_U32.unpack_from(self._data, at)[0])) for at in places]

    def integers(self, field: int, kind: str = "i32") -> tuple[int, ...]:
        """A vector of numbers."""
        reader = _SCALARS[kind]
        start, count = self.vector(field, reader.size)
        code = reader.format[-1]
        return struct.unpack_from(f"<{count}{code}", self._data, start)

    def vector(self, field: int, item_bytes: int, most: int = VECTOR_LENGTH_MAX) -> tuple[int, int]:
        """Where a vector's items begin and how many there are; 0 and 0 if there is none."""
        if not self.has(field):
            return 0, 0
        start = self._target(field)
        _within(self._data, start, 4, "a vector")
        count = int(_U32.unpack_from(self._data, start)[0])
        if count > most:
            raise FlatbufferError(f"at {start}: {count} items, at most {most}")
        if start % 4 or (start + 4) % min(item_bytes, 8):
            raise FlatbufferError(f"at {start}: a vector that is not aligned")
        _within(self._data, start + 4, count * item_bytes, "a vector")
        return start + 4, count

    def string(self, field: int) -> str:
        """Text; empty if there is none."""
        start, count = self.vector(field, 1, STRING_BYTES_MAX)
        if not self.has(field):
            return ""
        _within(self._data, start, count + 1, "a text")
        text = self._data[start : start + count]
        if self._data[start + count] or 0 in text:
            raise FlatbufferError(f"at {start}: a text that does not end where it says")
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise FlatbufferError(f"at {start}: a text that is not UTF-8") from error

    def inline_ok(self, field: int) -> bool:
        """Whether a scalar field lies in its table; how long it is, one byte at least."""
        return not self.has(field) or _HEAD <= self._fields[field] < self._size

    def _field(self, field: int, size: int) -> int:
        offset = self._fields[field]
        if offset < _HEAD or offset + size > self._size:
            raise FlatbufferError(f"at {self._place}: field {field} lies outside of its table")
        return self._place + offset

    def _target(self, field: int) -> int:
        place = self._field(field, 4)
        if place % 4:
            raise FlatbufferError(f"at {place}: an offset that is not aligned")
        return place + int(_U32.unpack_from(self._data, place)[0])


def _within(data: bytes, place: int, size: int, what: str) -> None:
    if place < 0 or place + size > len(data):
        raise FlatbufferError(f"{what} would lie at {place}, outside of the {len(data)} bytes")
