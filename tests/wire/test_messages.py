import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.examples import EXAMPLES, fields_of
from wire import limits
from wire.messages import MESSAGES, RESERVED_KINDS, Body, Chunk, Message, Plan, Reason, is_finite

NUMBER_MAX = 2**53


def decoded(name: str, field: str, value: Any) -> Message:
    """An example with one field changed, as the network would bring it."""
    message, _ = EXAMPLES[name]
    fields = fields_of(message)
    fields[message.__struct_fields__.index(field)] = value
    body = msgspec.msgpack.encode(fields)
    return msgspec.msgpack.decode(body, type=type(message))


def test_every_kind_has_one_number_and_a_direction() -> None:
    assert all(kind == message.KIND for kind, message in MESSAGES.items())
    assert not set(MESSAGES) & set(RESERVED_KINDS)
    assert all(message.UPLINK is (kind < 64) for kind, message in MESSAGES.items() if kind != 6)
    assert Chunk.UPLINK is None
    names = [message.__name__ for message in MESSAGES.values()]
    assert len(set(names) | set(RESERVED_KINDS.values())) == len(names) + len(RESERVED_KINDS)


def test_every_kind_has_an_example() -> None:
    assert {message.KIND for message, _ in EXAMPLES.values()} == set(MESSAGES)


def test_the_numbers_of_kinds_never_change() -> None:
    numbers = {message.__name__: kind for kind, message in MESSAGES.items()}
    assert numbers == {
        "EnrolRequest": 1,
        "Available": 2,
        "Declined": 3,
        "FetchRequest": 4,
        "UpdateOffer": 5,
        "Chunk": 6,
        "Failed": 7,
        "Gone": 8,
        "Leave": 9,
        "DescriptionRequest": 10,
        "EvaluationReport": 32,
        "ReleaseVeto": 36,
        "Enrolled": 64,
        "Refused": 65,
        "Invite": 66,
        "ComeBackAt": 67,
        "ModelOffer": 68,
        "UploadStatus": 69,
        "Receipt": 70,
        "Settled": 71,
        "Release": 72,
        "Revoked": 73,
        "DescriptionOffer": 74,
        "EvaluateInvite": 96,
    }


@pytest.mark.parametrize("struct", [*MESSAGES.values(), Plan])
def test_messages_are_frozen_arrays_whose_defaults_come_last(struct: type[Body]) -> None:
    config = struct.__struct_config__
    assert config.frozen
    assert config.array_like
    assert not config.forbid_unknown_fields
    info = [field.required for field in msgspec.structs.fields(struct)]
    assert info == sorted(info, reverse=True)


# For each bounded field: the least and the greatest that is taken, and what lies just outside.
BOUNDS: list[tuple[str, str, list[Any], list[Any]]] = [
    ("enrol_request", "public_key", [bytes(32)], [b"", bytes(31), bytes(33), "a" * 32, None]),
    ("enrol_request", "proof", [bytes(32)], [bytes(31), bytes(33)]),
    ("enrol_request", "device_class", ["a", "é" * 64], ["", "a" * 65, b"a", 1]),
    ("available", "check_in", [1, NUMBER_MAX], [0, -1, NUMBER_MAX + 1, 2**64 - 1, 1.0, True]),
    ("available", "window_s", [0.0, limits.LEASE_S_MAX], [-0.001, limits.LEASE_S_MAX + 1, "1"]),
    ("available", "held_version", [-1, NUMBER_MAX], [-2, NUMBER_MAX + 1]),
    ("available", "released_version", [-1, NUMBER_MAX], [-2, NUMBER_MAX + 1]),
    ("available", "schema_digest", [bytes(32)], [bytes(31)]),
    ("available", "battery_fraction", [0.0, 1.0], [-0.01, 1.01, math.nan]),
    ("available", "charging", [True, False], [0, 1, None, "true"]),
    ("available", "metered", [True, False], [0, 1]),
    ("available", "codecs", [[], ["a"] * 16], [["a"] * 17, [""], ["a" * 65], [1], "raw", None]),
    ("declined_invitation", "round", [0, NUMBER_MAX], [-1, NUMBER_MAX + 1]),
    (
        "declined_invitation",
        "reason",
        ["a", "a" * 64, "a_9"],
        ["", "a" * 65, "A", "9a", "_a", "a b", "a-b", "é", "a\n", "\na", "a\x00"],
    ),
    ("declined_invitation", "detail", ["", "é" * 200], ["a" * 201, b""]),
    ("fetch_request_resumed", "want_version", [0, NUMBER_MAX], [-1]),
    ("fetch_request_resumed", "have_version", [-1, NUMBER_MAX], [-2]),
    (
        "fetch_request_resumed",
        "chunk_bytes_max",
        [1, limits.TRANSFER_BYTES_MAX],
        [0, -1, limits.TRANSFER_BYTES_MAX + 1],
    ),
    ("fetch_request_resumed", "transfer_id", [b"", bytes(16)], [bytes(17)]),
    ("fetch_request_resumed", "received", [b"", bytes(8_192)], [bytes(8_193)]),
    ("update_offer", "update_id", [bytes(16)], [bytes(15), bytes(17)]),
    ("update_offer", "round", [1], [0]),
    ("update_offer", "base_version", [0], [-1]),
    (
        "update_offer",
        "payload_bytes",
        [1, limits.TRANSFER_BYTES_MAX],
        [0, limits.TRANSFER_BYTES_MAX + 1],
    ),
    ("update_offer", "payload_digest", [bytes(32)], [bytes(16)]),
    ("update_offer", "chunk_bytes", [1], [0]),
    ("update_offer", "num_examples", [1, NUMBER_MAX], [0, NUMBER_MAX + 1]),
    ("update_offer", "chunks_follow", [True], [1]),
    (
        "update_offer",
        "metrics",
        [{}, {str(i): 0.0 for i in range(32)}],
        [{str(i): 0.0 for i in range(33)}, {"": 0.0}, {"a" * 65: 0.0}, {"a": "b"}, {1: 0.0}, []],
    ),
    ("chunk_up", "transfer_id", [bytes(16)], [bytes(15)]),
    ("chunk_up", "index", [0, 65_535], [-1, 65_536]),
    ("chunk_up", "data", [b"a"], [b"", "text"]),
    ("failed", "round", [1], [0]),
    ("gone", "check_in", [0, NUMBER_MAX], [-1, NUMBER_MAX + 1]),
    ("enrolled", "device", ["a", "a" * 64], ["", "a" * 65]),
    ("enrolled", "federation", ["a", "a" * 64], ["", "a" * 65]),
    ("enrolled", "certificate", [b"", bytes(8_192)], [bytes(8_193), ""]),
    ("refused", "kind", [0, 255], [-1, 256]),
    ("invite", "check_in", [1], [0]),
    ("invite", "base_digest", [bytes(32)], [b""]),
    ("invite", "codec", ["a"], [""]),
    ("invite", "deadline_s", [1e-9, limits.DEADLINE_S_MAX], [0.0, limits.DEADLINE_S_MAX + 1]),
    ("invite", "chunk_bytes_max", [1], [0]),
    ("invite", "plan", [[1, 1, 1.0, 0, 0.0, 0.0], []], [None, {}, [0], 1]),
    ("available", "description_digest", [b"", bytes(32)], [bytes(33), ""]),
    ("description_request_resumed", "chunk_bytes_max", [1], [0]),
    (
        "description_request_resumed",
        "bytes_max",
        [1, limits.TRANSFER_BYTES_MAX],
        [0, limits.TRANSFER_BYTES_MAX + 1],
    ),
    ("description_request_resumed", "have_digest", [b"", bytes(32)], [bytes(33)]),
    ("description_request_resumed", "transfer_id", [b"", bytes(16)], [bytes(17)]),
    ("description_request_resumed", "received", [b"", bytes(8_192)], [bytes(8_193)]),
    ("description_offer", "transfer_id", [bytes(16)], [bytes(15), b""]),
    ("description_offer", "payload_bytes", [1, limits.TRANSFER_BYTES_MAX], [0]),
    ("description_offer", "payload_digest", [bytes(32)], [bytes(31), b""]),
    ("description_offer", "chunk_bytes", [1], [0]),
    ("evaluation_report", "round", [1], [0]),
    ("evaluation_report", "version", [0], [-1]),
    ("evaluation_report", "loss", [-1e9, 1e300], ["1", None]),
    ("evaluation_report", "num_examples", [1, NUMBER_MAX], [0, NUMBER_MAX + 1]),
    ("evaluation_report", "metrics", [{}], [{"": 0.0}, {"a": "b"}, []]),
    ("evaluate_invite", "check_in", [1], [0]),
    ("evaluate_invite", "round", [1], [0]),
    ("evaluate_invite", "version", [0], [-1]),
    ("evaluate_invite", "model_digest", [bytes(32)], [b""]),
    ("evaluate_invite", "plan", [[]], [None, {}, [0], 1]),
    ("evaluate_invite", "deadline_s", [1e-9], [0.0, limits.DEADLINE_S_MAX + 1]),
    ("come_back_at", "after_s", [0.0, limits.COME_BACK_S_MAX], [-1.0, limits.COME_BACK_S_MAX + 1]),
    ("model_offer", "from_version", [-1], [-2]),
    ("model_offer", "model_digest", [bytes(32)], [bytes(33)]),
    ("upload_status", "received", [b"", bytes(8_192)], [bytes(8_193)]),
    ("receipt", "update_id", [bytes(16)], [b""]),
    ("settled_counted", "counted", [True, False], [1, None]),
    ("release", "alias", ["stable"], [""]),
    ("revoked", "reason", ["owner_left"], ["Owner left"]),
]
PLAN_BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("local_epochs", [1, limits.EPOCHS_MAX], [0, limits.EPOCHS_MAX + 1, 1.5]),
    ("batch", [1, limits.BATCH_MAX], [0, limits.BATCH_MAX + 1]),
    ("learning_rate", [1e-9, 1e6], [0.0, -1.0, 1e6 + 1, math.nan, math.inf]),
    ("seed", [0, NUMBER_MAX], [-1, NUMBER_MAX + 1]),
    ("clip_norm", [0.0, 1e12], [-1e-9, 2e12]),
    ("proximal_mu", [0.0, 1e6], [-1e-9, 2e6]),
]


@pytest.mark.parametrize(("name", "field", "taken", "refused"), BOUNDS)
def test_the_bounds_of_a_field_are_where_they_are_said_to_be(
    name: str, field: str, taken: list[Any], refused: list[Any]
) -> None:
    for value in taken:
        decoded(name, field, value)
    for value in refused:
        with pytest.raises(msgspec.ValidationError):
            decoded(name, field, value)


@pytest.mark.parametrize(("field", "taken", "refused"), PLAN_BOUNDS)
def test_the_bounds_of_a_plan_are_where_they_are_said_to_be(
    field: str, taken: list[Any], refused: list[Any]
) -> None:
    at = Plan.__struct_fields__.index(field)
    for value in taken:
        fields = fields_of(Plan())
        fields[at] = value
        decoded("invite", "plan", fields)
    for value in refused:
        fields = fields_of(Plan())
        fields[at] = value
        with pytest.raises(msgspec.ValidationError):
            decoded("invite", "plan", fields)


@given(st.text(st.characters(codec="utf-8"), max_size=70))
def test_a_reason_is_one_snake_case_word(text: str) -> None:
    word = all(c in "abcdefghijklmnopqrstuvwxyz0123456789_" for c in text)
    expected = word and 1 <= len(text) <= 64 and text[0].isalpha()
    try:
        msgspec.convert(text, Reason)
    except msgspec.ValidationError:
        assert not expected
    else:
        assert expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_found_at_any_depth(value: float) -> None:
    plan = Plan(clip_norm=value)
    invite, _ = EXAMPLES["invite"]
    offer, _ = EXAMPLES["update_offer"]
    assert not is_finite(value)
    assert not is_finite(msgspec.structs.replace(invite, plan=plan))
    assert not is_finite(msgspec.structs.replace(offer, metrics={"a": 0.0, "b": value}))


@given(st.floats())
def test_a_float_is_finite_when_it_is_neither_nan_nor_infinite(value: float) -> None:
    assert is_finite(value) == math.isfinite(value)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_finite(name: str) -> None:
    assert is_finite(EXAMPLES[name][0])
