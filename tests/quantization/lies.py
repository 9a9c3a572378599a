"""Payloads under a right check that are refused, one lie each, with the error."""

from typing import Final

import zstandard

from quantization.reader import varint
from quantization.symbols import BYTES, GAPS, GAPS16, SIGNS, WORDS
from tests.quantization.forge import SR, Body, Forged, bell, header, schema, zstd
from wire.errors import (
    BadCompressionError,
    NotFiniteError,
    RemoteProtocolError,
    SchemaMismatchError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnknownCodecError,
    UnsupportedVersionError,
)

ONE: Final = schema((100,))
TWO: Final = schema((4,), (300,))
GAP: Final = Body(GAPS, bytes((3, 5)), plain=b"\x02")
GOOD: Final = Forged(ONE, [SR], [GAP])
ROTATED: Final = header(8, 0.5, 1.0)


def lies() -> dict[str, tuple[Forged, type[RemoteProtocolError], str]]:
    """Name -> what is sent, the error, and what its text says."""
    content = bytes((3, 5)) * 20
    frame = zstd(bytes(200))
    gaps = Body(GAPS, bytes(200), frame, bytes(13))
    whole = GOOD.having(tensors=[header(1)], bodies=[Body(tail=bell(100).tobytes())])
    eden = Forged(ONE, [ROTATED], [Body(SIGNS, plain=bytes(13), tail=b"\x80")], seed=bytes(4))
    return {
        "layout": (GOOD.having(layout=1), UnsupportedVersionError, "layout 1"),
        "asked for a codec that is not": (GOOD.having(asked=77), UnknownCodecError, "codec 77"),
        "a codec that is not": (GOOD.having(tensors=[b"\x0a"]), UnknownCodecError, "t0: codec 10"),
        "codec 0": (GOOD.having(tensors=[b"\x00"]), UnknownCodecError, "codec 0"),
        "a secure sum is no payload": (
            GOOD.having(tensors=[b"\xff"]),
            UnknownCodecError,
            "codec 255",
        ),
        "another schema": (GOOD.having(made=TWO), SchemaMismatchError, "another schema"),
        "a seed without need": (GOOD.having(seed=bytes(4)), RemoteProtocolError, "no tensor needs"),
        "no seed": (
            eden.having(seed=b""),
            RemoteProtocolError,
            "no tensor needs, or none",
        ),
        "a step of NaN": (
            GOOD.having(tensors=[header(4, float("nan"), short=True)]),
            NotFiniteError,
            "t0: a scale",
        ),
        "an infinite step": (
            GOOD.having(tensors=[header(4, float("inf"), short=True)]),
            NotFiniteError,
            "t0: a scale",
        ),
        "a negative step": (
            GOOD.having(tensors=[header(4, -0.5, short=True)]),
            NotFiniteError,
            "t0: a scale",
        ),
        "a level of NaN": (
            GOOD.having(tensors=[header(5, 0.5, float("nan"))]),
            NotFiniteError,
            "t0: a scale",
        ),
        "a negative level": (
            GOOD.having(tensors=[header(5, 0.5, -1.0)]),
            NotFiniteError,
            "t0: a scale",
        ),
        "a scale of half precision of NaN": (
            whole.having(tensors=[header(2, float("nan"))], bodies=[Body(tail=bytes(200))]),
            NotFiniteError,
            "t0: a scale",
        ),
        "symbols that leave float32": (
            GOOD.having(tensors=[header(5, 1e38, 1.0)], bodies=[Body(BYTES, b"\x7f" * 100)]),
            NotFiniteError,
            "tensor 0",
        ),
        "scales that leave float32": (
            eden.having(
                tensors=[header(8, 3e38, 1.0)],
                bodies=[Body(SIGNS, plain=bytes(13), tail=b"\xff")],
            ),
            NotFiniteError,
            "tensor 0",
        ),
        "half precision infinity": (
            whole.having(tensors=[header(2, 1.0)], bodies=[Body(tail=b"\x00\x7c" * 100)]),
            NotFiniteError,
            "tensor 0",
        ),
        "a float of NaN": (
            whole.having(bodies=[Body(tail=b"\xff\xff\xff\x7f" * 100)]),
            NotFiniteError,
            "tensor 0",
        ),
        "an unknown mode": (
            GOOD.having(bodies=[Body(9, b"\x00", plain=b"\x00")]),
            RemoteProtocolError,
            "mode 9",
        ),
        "symbols where there are floats": (
            whole.having(bodies=[Body(BYTES, b"\x01", tail=bell(100).tobytes())]),
            TrailingBytesError,
            "1 bytes of symbols, 0 wanted",
        ),
        "gaps where there are floats": (
            whole.having(bodies=[Body(GAPS, b"\x01", tail=bell(100).tobytes())]),
            RemoteProtocolError,
            "out of the block",
        ),
        "more symbols than can be": (
            GOOD.having(bodies=[Body(GAPS, bytes(302), plain=bytes(13))]),
            TooLargeError,
            "302 bytes of symbols for 100",
        ),
        "more signs than can be": (
            GOOD.having(bodies=[Body(GAPS, bytes(50), plain=bytes(14))]),
            TooLargeError,
            "14 bytes of signs for 100",
        ),
        "four gigabytes of symbols": (
            GOOD.having(bodies=[Body(GAPS, sizes=varint(2**32) + b"\x00\x00")]),
            TooLargeError,
            "4294967296 bytes",
        ),
        "four gigabytes of frame": (
            GOOD.having(bodies=[Body(GAPS, sizes=b"\x20" + varint(2**32) + b"\x00")]),
            BadCompressionError,
            "no compression",
        ),
        "a size in too many bytes": (
            GOOD.having(bodies=[Body(GAPS, b"\x03", sizes=b"\x81\x00\x00\x00")]),
            RemoteProtocolError,
            "more bytes than it needs",
        ),
        "a size that does not end": (
            GOOD.having(bodies=[Body(GAPS, sizes=b"\xff" * 5)]),
            RemoteProtocolError,
            "more bytes than it needs",
        ),
        "a frame that is larger than its content": (
            GOOD.having(bodies=[Body(GAPS, bytes(2), frame, b"\x00")]),
            BadCompressionError,
            "no compression",
        ),
        "bytes after the last block": (GOOD.having(rest=b"\x00"), TrailingBytesError, "1 bytes"),
        "a plain string that is cut": (
            GOOD.having(bodies=[Body(GAPS, b"\x03\x05", sizes=b"\x02\x00\x01")]),
            TruncatedError,
            "promised",
        ),
        "scales that are missing": (
            eden.having(bodies=[Body(SIGNS, plain=bytes(13))]),
            TruncatedError,
            "promised",
        ),
        "a zstd bomb that declares its size": (
            GOOD.having(bodies=[Body(GAPS, bytes(300), zstd(bytes(2**24))[:290], b"\x00")]),
            BadCompressionError,
            "declares 16777216",
        ),
        "a zstd bomb that declares none": (
            GOOD.having(
                bodies=[Body(GAPS, bytes(300), zstd(bytes(2**20), declare=False), b"\x00")]
            ),
            BadCompressionError,
            "declares -1",
        ),
        "one byte more than the header says": (
            GOOD.having(bodies=[Body(GAPS, bytes(199), frame, bytes(13))]),
            BadCompressionError,
            "declares 200 bytes, the header 199",
        ),
        "a frame that is cut": (
            GOOD.having(bodies=[Body(GAPS, bytes(200), frame[:-1], bytes(13))]),
            BadCompressionError,
            ".",
        ),
        "bytes after a frame": (
            GOOD.having(bodies=[Body(GAPS, bytes(200), frame + b"\x00", bytes(13))]),
            BadCompressionError,
            ".",
        ),
        "a second frame": (
            GOOD.having(
                bodies=[Body(GAPS, bytes(200), frame + b"\x28\xb5\x2f\xfd" + zstd(b""), bytes(13))]
            ),
            BadCompressionError,
            ".",
        ),
        "a skippable frame after": (
            GOOD.having(
                bodies=[Body(GAPS, bytes(200), frame + b"\x50\x2a\x4d\x18" + bytes(4), bytes(13))]
            ),
            BadCompressionError,
            ".",
        ),
        "a frame with its magic number": (
            GOOD.having(bodies=[Body(GAPS, bytes(200), b"\x28\xb5\x2f\xfd" + frame, bytes(13))]),
            BadCompressionError,
            ".",
        ),
        "a frame that needs a dictionary": (
            GOOD.having(bodies=[Body(GAPS, content, dictionary_frame(content), bytes(5))]),
            BadCompressionError,
            ".",
        ),
        "no frame at all": (
            GOOD.having(bodies=[Body(GAPS, bytes(200), b"\x00\x01\x02", bytes(13))]),
            BadCompressionError,
            ".",
        ),
        "a good frame of bad gaps": (
            GOOD.having(bodies=[gaps]),
            RemoteProtocolError,
            "out of the block",
        ),
        "a magnitude that does not fit": (
            GOOD.having(bodies=[Body(GAPS16, b"\x80\xff\xff", plain=b"\x00")]),
            RemoteProtocolError,
            "fit",
        ),
        "a token of zeros alone and a symbol": (
            GOOD.having(bodies=[Body(GAPS, b"\xff\x00", plain=b"\x00")]),
            RemoteProtocolError,
            "both",
        ),
        "signs behind the last": (
            GOOD.having(bodies=[Body(GAPS, b"\x00", plain=b"\x02")]),
            RemoteProtocolError,
            "behind the last sign",
        ),
        "signs of another count": (
            GOOD.having(bodies=[Body(SIGNS, plain=bytes(12))]),
            TruncatedError,
            "12 bytes of symbols, 13",
        ),
        "words of another count": (
            GOOD.having(bodies=[Body(WORDS, bytes(201))]),
            TrailingBytesError,
            "201 bytes of symbols, 200",
        ),
    }


def dictionary_frame(content: bytes) -> bytes:
    """A frame that names a dictionary."""
    samples: list[bytes | bytearray | memoryview] = [
        bytes((i % 7, j % 5, i * j % 11)) * 9 for i in range(40) for j in range(40)
    ]
    trained = zstandard.train_dictionary(1_024, samples)
    made = zstandard.ZstdCompressor(level=1, dict_data=trained).compress(content)
    assert zstandard.get_frame_parameters(made).dict_id != 0
    return made[4:]


LIES: Final = lies()
