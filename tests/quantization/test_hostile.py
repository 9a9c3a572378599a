"""What an attacker sends has a right check, and whatever else he likes."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization import CODEC_NAMES, Accumulator, Payload, decode, encode
from quantization.symbols import BYTES, GAPS, GAPS16, SIGNS, WORDS, ZERO, pack
from tests.quantization.forge import (
    ECQ,
    SR,
    Body,
    Forged,
    bell,
    header,
    heavy,
    schema,
    sealed,
    zstd,
)
from tests.quantization.lies import GOOD, LIES, ONE, TWO
from wire import limits
from wire.errors import (
    RemoteProtocolError,
)

ZEROS = Body()


def check(data: bytes) -> None:
    """A payload of `ONE` or `TWO` is a typed error, or tensors as the schema says."""
    for made in (ONE, TWO):
        try:
            made.check(decode(data, made))
        except RemoteProtocolError:
            continue


def test_what_is_forged_right_is_read() -> None:
    back = decode(GOOD.data, ONE)["t0"]
    assert back.tolist() == [0.0] * 3 + [0.5] + [0.0] * 5 + [-0.5] + [0.0] * 90


# -- every bit -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_bit_flipped_under_a_right_check_is_well_formed_or_a_typed_error(codec: str) -> None:
    values = {"t0": heavy(4), "t1": np.where(np.arange(300) % 7, 0.0, heavy(300)).astype("f4")}
    payload = encode(codec, values, TWO, seed=0)
    assert len(payload) < 1_500
    for bit in range(0, 8 * len(payload), 1 if len(payload) < 300 else 5):
        damaged = bytearray(payload)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        check(sealed(bytes(damaged)))


@pytest.mark.parametrize("codec", CODEC_NAMES)
@settings(max_examples=10)
@given(
    st.lists(st.tuples(st.integers(10, 2_000), st.binary(max_size=5)), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_bytes_put_in_or_taken_out_are_well_formed_or_a_typed_error(
    codec: str, edits: list[tuple[int, bytes]], gone: int
) -> None:
    payload = encode(codec, {"t0": bell(4), "t1": bell(300)}, TWO, seed=0)
    for at, more in edits:
        where = 10 + at % max(len(payload) - 10, 1)
        payload = payload[:where] + more + payload[where + gone :]
    check(sealed(payload.ljust(10, b"\x00")))


@settings(max_examples=80)
@given(st.binary(max_size=80), st.sampled_from([ONE, TWO]), st.booleans())
def test_any_bytes_behind_a_right_header_are_well_formed_or_a_typed_error(
    data: bytes,
    made: object,
    seeded: bool,  # noqa: FBT001 - drawn
) -> None:
    assert made in (ONE, TWO)
    prefix = bytes.fromhex((ONE if made is ONE else TWO).digest)[:4]
    check(sealed(struct.pack("<BB4sI", 2, 128 * seeded, prefix, 0) + data))


# -- one lie at a time -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_refused_with_the_word_for_it(name: str) -> None:
    forged, error, why = LIES[name]
    with pytest.raises(error, match=why) as caught:
        decode(forged.data, ONE)
    assert type(caught.value) is error or error is RemoteProtocolError
    total = Accumulator(ONE, weight_cap=1, updates_max=1)
    with pytest.raises(error):
        total.add(forged.data, 1)
    assert total.count == 0


@pytest.mark.parametrize("mode", [GAPS, GAPS16, SIGNS, BYTES, WORDS])
@settings(max_examples=20)
@given(st.binary(max_size=30), st.binary(max_size=4), st.sampled_from([SR, ECQ]))
def test_any_strings_in_any_mode_are_well_formed_or_a_typed_error(
    mode: int, squeezed: bytes, plain: bytes, head: bytes
) -> None:
    check(Forged(ONE, [head], [Body(mode, squeezed, plain=plain)]).data)


@settings(max_examples=20)
@given(
    st.sampled_from([4, 5, 7, 8, 9]),
    st.binary(min_size=8, max_size=8),
    st.lists(st.integers(-32_768, 32_767), min_size=100, max_size=100),
    st.integers(0, 255),
)
def test_any_parameters_symbols_and_scales_are_well_formed_or_a_typed_error(
    number: int, parameters: bytes, symbols: list[int], scale: int
) -> None:
    size = {4: 2, 5: 8, 7: 4, 8: 8, 9: 4}[number]
    packed = pack(np.maximum(symbols, -32_767).astype(np.int16))
    body = Body(packed.mode, packed.squeezed, plain=packed.plain)
    if number in (7, 8):
        body = Body(packed.mode, packed.squeezed, plain=packed.plain, tail=bytes((scale,)))
    seed = bytes(4) if number in (7, 8) else b""
    check(Forged(ONE, [bytes((number,)) + parameters[:size]], [body], seed=seed).data)


def test_denormal_steps_are_steps() -> None:
    made = header(5, 1e-45, 3e-45)
    back = decode(Forged(ONE, [made], [Body(BYTES, b"\x01\x02" * 50)]).data, ONE)["t0"]
    assert back[:2].tolist() == [np.float32(3e-45), np.float32(3e-45)]


def test_the_lowest_integers_are_read_as_any_other() -> None:
    low = Forged(ONE, [ECQ], [Body(BYTES, b"\x80" * 100)])
    assert decode(low.data, ONE)["t0"].tolist() == [-64.0] * 100
    lower = Forged(ONE, [ECQ], [Body(WORDS, b"\x00" * 100 + b"\x80" * 100)])
    assert decode(lower.data, ONE)["t0"].tolist() == [-16_384.0] * 100


def test_a_payload_says_nothing_of_blocks_that_are_not_looked_at() -> None:
    """The header is checked when it is opened; a block when it is read."""
    bad = GOOD.having(bodies=[Body(GAPS, b"\xff\x00", plain=b"\x00")])
    read = Payload(bad.data, ONE)
    with pytest.raises(RemoteProtocolError, match="both"):
        read.block(0)


# -- memory ----------------------------------------------------------------------------------------

LIMITED = """
import json, resource, sys
import numpy, zstandard
from quantization import decode
from wire.errors import RemoteProtocolError
from tests.quantization.forge import schema
made = {1: schema((100,)), 2: schema((4,), (300,))}
lines = [json.loads(line) for line in sys.stdin]
for which, data in lines[:1]:
    try:
        decode(bytes.fromhex(data), made[which])
    except RemoteProtocolError:
        pass
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 24 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
refused = 0
for which, data in lines:
    try:
        decode(bytes.fromhex(data), made[which])
    except RemoteProtocolError:
        refused += 1
print(refused, len(lines))
"""


def window_bomb(log: int) -> bytes:
    """A frame that wants a window of 2**log bytes for the 200 that it declares."""
    # Descriptor: content size of 2 bytes, no single segment; window; size - 256; a last RLE block.
    return struct.pack("<BBH", 0x40, (log - 10) << 3, 300 - 256) + b"\x63\x09\x00\x00"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc")
def test_nothing_that_is_sent_takes_more_than_the_schema_implies() -> None:
    """All lies, bombs and bit flips, in a process that may have 24 MB more than it has."""
    sent = [(1, forged.data) for forged, _error, _why in LIES.values()]
    for log in (10, 20, 27, 31, 41):
        bomb = GOOD.having(bodies=[Body(GAPS, bytes(300), window_bomb(log), b"\x00")])
        sent.append((1, bomb.data))
    for size in (2**20, 2**28):
        for declare in (True, False):
            frame = zstd(bytes(size), declare=declare, level=3)[:299]
            sent.append((1, GOOD.having(bodies=[Body(GAPS, bytes(300), frame, b"\x00")]).data))
    for codec in CODEC_NAMES:
        payload = encode(codec, {"t0": bell(4), "t1": bell(300)}, TWO, seed=0)
        for bit in range(0, 8 * len(payload), 7):
            damaged = bytearray(payload)
            damaged[bit >> 3] ^= 1 << (bit & 7)
            sent.append((2, sealed(bytes(damaged))))
    lines = "\n".join(json.dumps((which, data.hex())) for which, data in sent)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        input=lines,
        capture_output=True,
        text=True,
        cwd=root,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    refused, count = map(int, done.stdout.split())
    assert count == len(sent)
    assert refused > len(LIES)


def test_a_window_that_is_larger_than_its_content_takes_no_memory() -> None:
    bomb = GOOD.having(bodies=[Body(GAPS, bytes(300), window_bomb(31), b"\x00")])
    with pytest.raises(RemoteProtocolError, match="out of the block"):
        decode(bomb.data, ONE)


def test_all_zero_blocks_of_the_largest_model_are_read_one_by_one() -> None:
    """A few bytes may stand for a model; a block of it costs a block."""
    made = schema((limits.MODEL_PARAMETERS_MAX,))
    blocks = limits.MODEL_PARAMETERS_MAX // 65_536
    read = Payload(Forged(made, [SR], [ZEROS] * blocks).data, made)
    for number in (0, blocks - 1):
        (part,) = read.block(number)
        assert part.values.size == 0
        assert part.positions is not None
    assert ZEROS.mode == ZERO
