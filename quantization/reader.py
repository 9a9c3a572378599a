"""Taking fields off the front of bytes from the network, never past their end."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from wire.errors import RemoteProtocolError, TruncatedError

VARINT_BYTES_MAX: Final = 5
_SEVEN_BITS: Final = 0x7F
_MORE: Final = 0x80


class Reader:
    """A place in a buffer."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.at = 0

    def take(self, size: int) -> memoryview:
        """The next `size` bytes.

        Raises:
            TruncatedError: there are fewer.
        """
        if size > self.left:
            raise TruncatedError(f"{self.left} bytes left, {size} wanted")
        taken = self._data[self.at : self.at + size]
        self.at += size
        return taken

    def byte(self) -> int:
        """The next byte.

        Raises:
            TruncatedError: there is none.
        """
        if self.at >= len(self._data):
            raise TruncatedError("0 bytes left, 1 wanted")
        self.at += 1
        return self._data[self.at - 1]

    def varint(self) -> int:
        """The next varint: seven bits to a byte, lowest first, in as few bytes as hold it.

        Raises:
            TruncatedError: it is cut off.
            RemoteProtocolError: it is longer than it need be, or than `VARINT_BYTES_MAX`.
        """
        value = 0
        for index in range(VARINT_BYTES_MAX):
            byte = self.byte()
            value |= (byte & _SEVEN_BITS) << (7 * index)
            if not byte & _MORE:
                if byte == 0 and index:
                    break
                return value
        raise RemoteProtocolError("a size is written in more bytes than it needs")

    def array(self, dtype: str, count: int) -> NDArray[np.generic]:
        """The next `count` items of a little-endian dtype; a view, not a copy."""
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    @property
    def left(self) -> int:
        """How many bytes have not been taken."""
        return len(self._data) - self.at


def varint(value: int) -> bytes:
    """The inverse of `Reader.varint`."""
    out = bytearray()
    while value > _SEVEN_BITS:
        out.append(value & _SEVEN_BITS | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)
