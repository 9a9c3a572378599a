"""Fuzz symbols: `make fuzz`.

Invariant: a mode and two strings end in a `RemoteProtocolError`, or in as many symbols as were
asked for, which pack and unpack to themselves.
"""

import sys

import numpy as np

from quantization.symbols import SYMBOL_ABS_MAX, Packed, pack, unpack
from wire.errors import RemoteProtocolError


def whole(packed: Packed, size: int) -> "np.ndarray[tuple[int], np.dtype[np.int16]]":
    """All symbols, zeros among them."""
    back = unpack(packed.mode, packed.squeezed, packed.plain, size)
    symbols = np.zeros(size, np.int16)
    symbols[slice(None) if back.positions is None else back.positions] = back.symbols
    return symbols


def check(data: bytes) -> None:
    """The invariant, of mode, size and length of the plain string in three bytes, and the rest."""
    if len(data) < 4:  # noqa: PLR2004 - see above
        return
    mode, size, plain = data[0] % 8, data[1] | (data[2] & 3) << 8, data[3]
    rest = data[4:]
    cut = max(len(rest) - plain, 0)
    try:
        symbols = whole(Packed(mode, rest[:cut], rest[cut:]), size)
    except RemoteProtocolError:
        return
    symbols = np.maximum(symbols, -SYMBOL_ABS_MAX).astype(np.int16)
    assert (whole(pack(symbols), size) == symbols).all()


def seeds() -> list[bytes]:
    """What to start from: each mode."""
    made = []
    for pattern in ([0], [0, 0, 1], [0] * 130 + [-3], [1, -1], [2, -1, 0], [300, 1], [0, 0, -999]):
        symbols = np.resize(np.array(pattern, np.int16), 700)
        packed = pack(symbols)
        head = bytes((packed.mode, 700 & 255, 700 >> 8, len(packed.plain)))
        made.append(head + packed.squeezed + packed.plain)
    return made


if __name__ == "__main__":
    from fuzz import engine

    engine.run(sys.argv, check, seeds())
