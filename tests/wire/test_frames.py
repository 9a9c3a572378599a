import hashlib
import itertools
import math
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import (
    COORDINATOR_KEY,
    CRYPTO,
    DEVICE,
    DEVICE_KEY,
    DOWN,
    ENROL_DOWN,
    EXAMPLES,
    FEDERATION,
    STRANGER_KEY,
    STRANGER_SEED,
    UP,
    UPDATE,
    address_for,
    fields_of,
    frame_of_body,
    key_of,
    seal,
    signer_of,
)
from wire import Address, frames, limits
from wire.errors import (
    BadSignatureError,
    DigestMismatchError,
    LocalProtocolError,
    NotFiniteError,
    RemoteProtocolError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnsupportedVersionError,
)
from wire.messages import (
    MESSAGES,
    RESERVED_KINDS,
    Available,
    Body,
    Chunk,
    EnrolRequest,
    Gone,
    Message,
    Receipt,
    Settled,
    UpdateOffer,
)

WHOLE = [seal(message, address) for message, address in EXAMPLES.values()]
ADDRESSES = [address for _, address in EXAMPLES.values()]
every_frame = pytest.mark.parametrize(
    ("data", "address"), list(zip(WHOLE, ADDRESSES, strict=True)), ids=list(EXAMPLES)
)


def open_at(data: bytes, address: Address) -> Message:
    return frames.open_frame(data, address, key_of(address), CRYPTO)


# -- what is sealed is what is opened ----------------------------------------------------------


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_sealed_is_opened_as_it_was(name: str) -> None:
    message, address = EXAMPLES[name]
    assert open_at(seal(message, address), address) == message


@given(
    update_id=st.binary(min_size=16, max_size=16),
    index=st.integers(0, limits.CHUNKS_PER_TRANSFER_MAX - 1),
    data=st.binary(min_size=1, max_size=2_000),
)
def test_any_chunk_comes_through(update_id: bytes, index: int, data: bytes) -> None:
    chunk = Chunk(update_id, index, data)
    assert open_at(seal(chunk, UP), UP) == chunk


@given(
    check_in=st.integers(1, 2**53),
    window_s=st.floats(0.0, limits.LEASE_S_MAX),
    versions=st.tuples(st.integers(-1, 2**53), st.integers(-1, 2**53)),
    battery=st.floats(0.0, 1.0),
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=limits.NAME_CHARS_MAX),
)
def test_any_check_in_comes_through(
    check_in: int, window_s: float, versions: tuple[int, int], battery: float, name: str
) -> None:
    sent = Available(check_in, window_s, *versions, bytes(32), name, battery, codecs=(name,))
    assert open_at(seal(sent, UP), UP) == sent


@given(
    metrics=st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        st.floats(allow_nan=False, allow_infinity=False),
        max_size=limits.METRICS_MAX,
    )
)
def test_any_finite_metrics_come_through(metrics: dict[str, float]) -> None:
    offer = UpdateOffer(UPDATE, 1, 0, 1, bytes(32), 1, 1, chunks_follow=False, metrics=metrics)
    assert open_at(seal(offer, UP), UP) == offer


def test_what_a_frame_adds_fits_the_overhead_that_chunks_leave() -> None:
    longest = Address("f" * limits.NAME_CHARS_MAX, DEVICE, "down")
    data = bytes(limits.PACKET_BYTES_MAX_DEFAULT - limits.PACKET_OVERHEAD_BYTES)
    chunk = Chunk(UPDATE, limits.CHUNKS_PER_TRANSFER_MAX - 1, data)
    added = len(seal(chunk, longest)) + len(longest.topic) - len(data)
    assert added + 16 <= limits.PACKET_OVERHEAD_BYTES


# -- damage ------------------------------------------------------------------------------------


@every_frame
def test_every_truncation_is_truncated(data: bytes, address: Address) -> None:
    for size in range(len(data)):
        with pytest.raises(TruncatedError):
            open_at(data[:size], address)


@every_frame
def test_trailing_bytes_are_trailing_bytes(data: bytes, address: Address) -> None:
    for extra in (b"\x00", b"\xc0", data):
        with pytest.raises(TrailingBytesError):
            open_at(data + extra, address)


HEADER_FIELDS: dict[str, tuple[range, tuple[type[RemoteProtocolError], ...]]] = {
    "magic": (range(2), (RemoteProtocolError,)),
    "major": (range(2, 3), (UnsupportedVersionError,)),
    "minor": (range(3, 4), (BadSignatureError,)),
    "kind": (range(4, 5), (UnsupportedVersionError, BadSignatureError)),
    "reserved": (range(5, 6), (RemoteProtocolError,)),
    "length": (range(6, 10), (TruncatedError, TrailingBytesError, TooLargeError)),
    "digest": (range(10, 18), (DigestMismatchError,)),
    "signature": (range(18, 82), (BadSignatureError,)),
}


@pytest.mark.parametrize("name", ["enrol_request", "chunk_up", "refused_enrolment", "receipt"])
def test_every_bit_of_the_header_matters(name: str) -> None:
    message, address = EXAMPLES[name]
    data = seal(message, address)
    for where, expected in HEADER_FIELDS.values():
        for at, bit in itertools.product(where, range(8)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            with pytest.raises(RemoteProtocolError) as caught:
                open_at(bytes(flipped), address)
            assert type(caught.value) in expected


@every_frame
def test_every_bit_of_the_body_matters(data: bytes, address: Address) -> None:
    for at in range(frames.HEADER_BYTES, len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        with pytest.raises(DigestMismatchError):
            open_at(bytes(flipped), address)


@given(st.binary(max_size=300))
def test_noise_is_never_anything_but_a_protocol_error(noise: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        open_at(noise, UP)


# -- forgery -----------------------------------------------------------------------------------


@every_frame
def test_a_missing_signature_is_a_bad_signature(data: bytes, address: Address) -> None:
    with pytest.raises(BadSignatureError):
        open_at(data[:18] + bytes(64) + data[82:], address)


@every_frame
def test_a_strangers_signature_is_a_bad_signature(data: bytes, address: Address) -> None:
    frame = frames.parse(data)
    statement = frames.statement(address, frame.minor, frame.kind, frame.body)
    forged = data[:18] + CRYPTO.signer(STRANGER_SEED).sign(statement) + data[82:]
    with pytest.raises(BadSignatureError):
        open_at(forged, address)
    with pytest.raises(BadSignatureError):
        frames.open_frame(data, address, STRANGER_KEY, CRYPTO)


@every_frame
def test_a_frame_does_not_verify_on_any_topic_but_its_own(data: bytes, address: Address) -> None:
    key = key_of(address)
    other_way = Address(
        address.scope, address.device, "down" if address.direction == "up" else "up"
    )
    for moved in (
        Address("letters", address.device, address.direction),
        Address(address.scope, "fedcba9876543210", address.direction),
        other_way,
        # The border between scope and device must not move either.
        Address(address.scope + address.device[:1], address.device[1:], address.direction),
    ):
        with pytest.raises(BadSignatureError):
            frames.open_frame(data, moved, key, CRYPTO)


def test_a_signature_of_one_message_is_none_of_another() -> None:
    counted = seal(Settled(UPDATE, counted=True, reason="counted"), DOWN)
    not_counted = seal(Settled(UPDATE, counted=False, reason="counted"), DOWN)
    with pytest.raises(BadSignatureError):
        open_at(not_counted[:18] + counted[18:82] + not_counted[82:], DOWN)


def test_a_body_under_another_kind_is_a_bad_signature() -> None:
    data = bytearray(seal(Receipt(UPDATE), DOWN))
    for kind in MESSAGES:
        if kind != Receipt.KIND:
            data[4] = kind
            with pytest.raises(BadSignatureError):
                open_at(bytes(data), DOWN)


def test_nothing_is_decoded_before_its_signature_holds() -> None:
    body = b"\x91\xff"
    data = frame_of_body(Receipt.KIND, body, DOWN)
    with pytest.raises(BadSignatureError):
        frames.open_frame(data, DOWN, STRANGER_KEY, CRYPTO)
    with pytest.raises(RemoteProtocolError) as caught:
        open_at(data, DOWN)
    assert type(caught.value) is RemoteProtocolError


def test_a_signature_that_was_stretched_by_the_group_order_is_a_bad_signature() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    data = bytearray(seal(Receipt(UPDATE), DOWN))
    s = int.from_bytes(data[50:82], "little") + order
    data[50:82] = s.to_bytes(32, "little")
    with pytest.raises(BadSignatureError):
        open_at(bytes(data), DOWN)


# -- version and kind --------------------------------------------------------------------------


def test_unknown_and_reserved_kinds_are_refused() -> None:
    for kind in set(range(256)) - set(MESSAGES):
        expected = "reserved" if kind in RESERVED_KINDS else "not known"
        with pytest.raises(UnsupportedVersionError, match=expected):
            frames.parse(frame_of_body(kind, b"\x90", DOWN))


@pytest.mark.parametrize("major", [0, 2, 255])
def test_another_major_version_is_refused_whatever_follows(major: int) -> None:
    data = bytearray(seal(Receipt(UPDATE), DOWN))
    data[2] = major
    data[4] = 200
    with pytest.raises(UnsupportedVersionError, match="protocol"):
        frames.parse(bytes(data))


# -- size --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(MESSAGES))
def test_an_oversize_is_refused_by_its_header_alone(kind: int) -> None:
    is_chunk = kind == Chunk.KIND
    bound = limits.TRANSFER_BYTES_MAX if is_chunk else limits.MESSAGE_BYTES_MAX
    header = struct.Struct("<2sBBBBI8s64s")
    with pytest.raises(TooLargeError):
        frames.parse(header.pack(b"PL", 1, 0, kind, 0, bound + 1, bytes(8), bytes(64)))
    with pytest.raises(TruncatedError):
        frames.parse(header.pack(b"PL", 1, 0, kind, 0, bound, bytes(8), bytes(64)))


@pytest.mark.parametrize(
    ("message", "address"),
    [(Receipt(UPDATE), UP), (Gone(1), DOWN), (Available(1, 1.0, 0, 0, bytes(32)), ENROL_DOWN)],
)
def test_what_travels_the_other_way_is_not_sealed(message: Message, address: Address) -> None:
    with pytest.raises(LocalProtocolError):
        seal(message, address)


def test_what_is_too_large_is_not_sealed() -> None:
    names = tuple(str(i) * 10_000 for i in range(7))
    with pytest.raises(LocalProtocolError):
        seal(Available(1, 1.0, 0, 0, bytes(32), codecs=names), UP)


@pytest.mark.parametrize("name", [name for name in EXAMPLES if not name.startswith("chunk")])
def test_a_message_that_travels_the_other_way_is_refused(name: str) -> None:
    message, _ = EXAMPLES[name]
    address = DOWN if message.UPLINK else UP
    with pytest.raises(RemoteProtocolError, match="does not travel"):
        open_at(frame_of_body(message.KIND, msgspec.msgpack.encode(message), address), address)


# -- bodies ------------------------------------------------------------------------------------

KINDS = sorted(MESSAGES)


@given(kind=st.sampled_from(KINDS), body=st.binary(max_size=200), minor=st.integers(0, 255))
def test_any_signed_body_opens_or_is_a_protocol_error(kind: int, body: bytes, minor: int) -> None:
    address = address_for(kind)
    data = frame_of_body(kind, body, address, minor=minor)
    try:
        message = open_at(data, address)
    except RemoteProtocolError:
        return
    assert msgspec.msgpack.encode(message) == body or minor != limits.PROTOCOL_MINOR


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(codec="ascii"), max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(name=st.sampled_from(sorted(EXAMPLES)), data=st.data())
def test_a_field_of_another_value_opens_or_is_a_protocol_error(
    name: str, data: st.DataObject
) -> None:
    message, address = EXAMPLES[name]
    fields = fields_of(message)
    fields[data.draw(st.integers(0, len(fields) - 1))] = data.draw(anything)
    body = msgspec.msgpack.encode(fields)
    try:
        opened = open_at(frame_of_body(message.KIND, body, address), address)
    except RemoteProtocolError:
        return
    assert msgspec.msgpack.encode(opened) == body


@given(name=st.sampled_from(sorted(EXAMPLES)), data=st.data())
def test_a_damaged_body_that_is_signed_opens_or_is_a_protocol_error(
    name: str, data: st.DataObject
) -> None:
    message, address = EXAMPLES[name]
    body = bytearray(msgspec.msgpack.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = open_at(frame_of_body(message.KIND, bytes(body), address), address)
    except RemoteProtocolError:
        return
    assert msgspec.msgpack.encode(opened) == bytes(body)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_truncation_of_a_signed_body_is_a_protocol_error(name: str) -> None:
    message, address = EXAMPLES[name]
    body = msgspec.msgpack.encode(message)
    for size in range(len(body)):
        with pytest.raises(RemoteProtocolError):
            open_at(frame_of_body(message.KIND, body[:size], address), address)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_field_that_is_left_out_is_missed(name: str) -> None:
    message, address = EXAMPLES[name]
    fields = fields_of(message)
    for count in range(len(fields)):
        body = msgspec.msgpack.encode(fields[:count])
        with pytest.raises(RemoteProtocolError):
            open_at(frame_of_body(message.KIND, body, address), address)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_refused_as_such(value: float) -> None:
    message, address = EXAMPLES["update_offer"]
    body = msgspec.msgpack.encode([*fields_of(message)[:-1], {"loss": value}])
    with pytest.raises(NotFiniteError):
        open_at(frame_of_body(message.KIND, body, address), address)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["available", "invite", "come_back_at"])
def test_no_float_of_a_message_may_be_nan_or_infinite(name: str, value: float) -> None:
    message, address = EXAMPLES[name]
    for at, field in enumerate(fields_of(message)):
        if isinstance(field, float):
            fields = fields_of(message)
            fields[at] = value
            with pytest.raises(RemoteProtocolError):
                open_at(
                    frame_of_body(message.KIND, msgspec.msgpack.encode(fields), address), address
                )


NOT_CANONICAL = {
    "wide integer": b"\x91\xcd\x00\x05",
    "wider integer": b"\x91\xcf\x00\x00\x00\x00\x00\x00\x00\x05",
    "signed integer": b"\x91\xd0\x05",
    "integer as a float": b"\x91\xcb" + struct.pack(">d", 5.0),
    "wide array": b"\xdc\x00\x01\x05",
    "wider array": b"\xdd\x00\x00\x00\x01\x05",
    "map": b"\x81\xa8check_in\x05",
    "two values": b"\x91\x05\x91\x05",
    "field too many": b"\x92\x05\xc0",
    "extension": b"\x91\xd4\x01\x05",
    "never used byte": b"\x91\xc1",
    "nothing": b"",
    "nil": b"\xc0",
}


@pytest.mark.parametrize("how", NOT_CANONICAL)
def test_a_message_has_one_encoding_only(how: str) -> None:
    assert open_at(frame_of_body(Gone.KIND, b"\x91\x05", UP), UP) == Gone(5)
    with pytest.raises(RemoteProtocolError):
        open_at(frame_of_body(Gone.KIND, NOT_CANONICAL[how], UP), UP)


def test_floats_have_eight_bytes_and_are_never_integers() -> None:
    fields = fields_of(EXAMPLES["available"][0])
    narrow = msgspec.msgpack.encode(fields).replace(
        b"\xcb" + struct.pack(">d", 90.5), b"\xca" + struct.pack(">f", 90.5)
    )
    whole = msgspec.msgpack.encode([fields[0], 90, *fields[2:]])
    for body in (narrow, whole):
        with pytest.raises(RemoteProtocolError, match="canonical"):
            open_at(frame_of_body(Available.KIND, body, UP), UP)


def test_a_repeated_key_is_refused() -> None:
    body = msgspec.msgpack.encode(EXAMPLES["update_offer"][0])
    twice = body.replace(b"base_accuracy", b"base_loss").replace(b"\xad", b"\xa9")
    with pytest.raises(RemoteProtocolError):
        open_at(frame_of_body(UpdateOffer.KIND, twice, UP), UP)


@pytest.mark.parametrize(
    "text", [b"\xff" * 7, b"\xc3\x28abcde", b"\xed\xa0\x80abcd", b"abcdef\xf0"]
)
def test_text_that_is_not_utf8_is_a_protocol_error(text: bytes) -> None:
    body = msgspec.msgpack.encode(Settled(UPDATE, counted=True, reason="counted"))
    with pytest.raises(RemoteProtocolError):
        open_at(frame_of_body(Settled.KIND, body[:-7] + text, DOWN), DOWN)
    request = msgspec.msgpack.encode(EnrolRequest(DEVICE_KEY, bytes(32), "seven77"))
    with pytest.raises(RemoteProtocolError):
        open_at(frame_of_body(EnrolRequest.KIND, request[:-7] + text, UP), UP)


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa0", b"\xdc\x00\x01"])
def test_deep_nesting_is_a_protocol_error(opening: bytes) -> None:
    for minor in (0, 1, 2):
        body = b"\x92\x05" + opening * 20_000 + b"\xc0"
        with pytest.raises(RemoteProtocolError):
            open_at(frame_of_body(Gone.KIND, body, UP, minor=minor), UP)


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x93\xc6\xff\xff\xff\xff",
        b"\x93\xdb\xff\xff\xff\xff",
        b"\x93\xdf\xff\xff\xff\xff",
    ],
)
def test_a_length_that_lies_is_a_protocol_error(body: bytes) -> None:
    for kind, minor in itertools.product(KINDS, (0, 1, 2)):
        address = address_for(kind)
        with pytest.raises(RemoteProtocolError):
            open_at(frame_of_body(kind, body, address, minor=minor), address)


# -- versions ----------------------------------------------------------------------------------

NEWER = limits.PROTOCOL_MINOR + 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_field_that_a_newer_minor_appended_is_ignored(name: str) -> None:
    message, address = EXAMPLES[name]
    body = msgspec.msgpack.encode([*fields_of(message), {"of": ["tomorrow", None]}])
    assert open_at(frame_of_body(message.KIND, body, address, minor=NEWER), address) == message


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_field_within_our_minor_is_rejected(name: str) -> None:
    message, address = EXAMPLES[name]
    body = msgspec.msgpack.encode([*fields_of(message), {"of": ["tomorrow", None]}])
    with pytest.raises(RemoteProtocolError, match="canonical"):
        open_at(frame_of_body(message.KIND, body, address), address)


def test_a_newer_minor_may_not_change_the_fields_that_we_know() -> None:
    for fields in ([UPDATE[:15]], ["text"], [None, UPDATE], []):
        body = msgspec.msgpack.encode(fields)
        with pytest.raises(RemoteProtocolError):
            open_at(frame_of_body(Receipt.KIND, body, DOWN, minor=NEWER), DOWN)


class ReceiptOfTomorrow(Body, frozen=True, array_like=True):
    KIND = Receipt.KIND
    UPLINK = False
    update_id: bytes
    note: str = "none"


def test_a_frame_of_the_minor_before_ours_has_defaults_for_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    today = seal(Receipt(UPDATE), DOWN)
    tomorrow = ReceiptOfTomorrow(UPDATE, "something")
    body = msgspec.msgpack.encode(tomorrow)
    monkeypatch.setattr(limits, "PROTOCOL_MINOR", NEWER)
    monkeypatch.setitem(frames._decoders, Receipt.KIND, msgspec.msgpack.Decoder(ReceiptOfTomorrow))
    old: object = open_at(today, DOWN)
    new: object = open_at(frame_of_body(Receipt.KIND, body, DOWN, minor=NEWER), DOWN)
    assert (old, new) == (ReceiptOfTomorrow(UPDATE), tomorrow)
    short = msgspec.msgpack.encode([UPDATE])
    with pytest.raises(RemoteProtocolError, match="canonical"):
        open_at(frame_of_body(Receipt.KIND, short, DOWN, minor=NEWER), DOWN)


@pytest.mark.parametrize("reserved", sorted(RESERVED_KINDS))
def test_a_newer_minor_may_not_use_a_kind_that_we_do_not_know(reserved: int) -> None:
    with pytest.raises(UnsupportedVersionError, match="reserved"):
        open_at(frame_of_body(reserved, b"\x90", DOWN, minor=NEWER), DOWN)


# -- the layout --------------------------------------------------------------------------------


def test_the_header_is_laid_out_as_the_page_says() -> None:
    data = seal(Receipt(UPDATE), DOWN)
    body = data[82:]
    assert data[:6] == b"PL\x01\x01\x46\x00"
    assert data[6:10] == len(body).to_bytes(4, "little")
    assert data[10:18] == hashlib.sha256(body).digest()[:8]
    assert body == b"\x91\xc4\x10" + UPDATE
    statement = b"".join(
        (
            b"potluck frame\x00\x01\x01\x46\x00",
            bytes((len(FEDERATION),)) + FEDERATION.encode(),
            bytes((len(DEVICE),)) + DEVICE.encode(),
            hashlib.sha256(body).digest(),
        )
    )
    assert signer_of(DOWN).sign(statement) == data[18:82]
    CRYPTO.verify(COORDINATOR_KEY, data[18:82], statement)
