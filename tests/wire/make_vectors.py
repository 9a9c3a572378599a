"""Make the vectors: `python -m tests.wire.make_vectors` writes them beside this file.

A file's number is the protocol's version, or the layout's. When the minor version grows, the files
of the version before stay as they are, and everybody goes on reading them.
"""

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.wire.examples import (
    COORDINATOR_KEY,
    CRYPTO,
    DEVICE,
    DEVICE_KEY,
    DOWN,
    ENROLMENT,
    EXAMPLES,
    FEDERATION,
    STRANGER_SEED,
    TOKEN_SECRET,
    UP,
    UPDATE,
    fields_of,
    frame_of_body,
    key_of,
    seal,
    seed_of,
    signer_of,
)
from tests.wire.make_descriptions import description_vectors
from tests.wire.make_payloads import (
    LONG,
    MODEL,
    SHARED,
    bundle_vectors,
    example_tensors,
    payload_vectors,
    plain,
    plain_schema,
    plain_tensors,
)
from wire import (
    Address,
    coordinator_id,
    device_id,
    frames,
    limits,
    tensors_digest,
    token_proof,
    update_id,
)
from wire.errors import RemoteProtocolError
from wire.messages import MESSAGES, Available, Gone, Invite, Receipt, Settled

DIRECTORY: Final = Path(__file__).parent / "vectors"
VERSION: Final = f"{limits.PROTOCOL_MAJOR}.{limits.PROTOCOL_MINOR}"


def frame_vectors() -> dict[str, Any]:
    """Every message, whole."""
    made = []
    for name, (message, address) in EXAMPLES.items():
        data = seal(message, address)
        frame = frames.parse(data)
        made.append(
            {
                "name": name,
                "kind": message.KIND,
                "message": type(message).__name__,
                "fields": plain(message),
                "scope": address.scope,
                "device": address.device,
                "direction": address.direction,
                "topic": address.topic,
                "signing_seed": seed_of(address).hex(),
                "public_key": key_of(address).hex(),
                "statement": frames.statement(address, frame.minor, frame.kind, frame.body).hex(),
                "frame": data.hex(),
            }
        )
    return {"protocol": VERSION, "frames": made}


def rejected_frames() -> dict[str, tuple[bytes, Address]]:
    """Frames that look right at a glance."""
    receipt = seal(Receipt(UPDATE), DOWN)
    gone = seal(Gone(5), UP)
    settled = Settled(UPDATE, counted=True, reason="counted")
    body = msgspec.msgpack.encode(Receipt(UPDATE))
    available = EXAMPLES["available"][0]
    wide = fields_of(available)
    whole = [*wide[:1], 90, *wide[2:]]
    infinite = [*fields_of(EXAMPLES["update_offer"][0])[:-1], {"base_loss": float("inf")}]
    nan = [*wide[:1], float("nan"), *wide[2:]]
    stranger = frames.seal(Gone(5), UP, CRYPTO.signer(STRANGER_SEED))
    return {
        "truncated_header": (receipt[:81], DOWN),
        "truncated_body": (receipt[:-1], DOWN),
        "trailing_byte": (receipt + b"\x00", DOWN),
        "wrong_magic": (b"Pl" + receipt[2:], DOWN),
        "other_major_version": (receipt[:2] + b"\x02" + receipt[3:], DOWN),
        "altered_minor_version": (receipt[:3] + b"\x00" + receipt[4:], DOWN),
        "reserved_byte_set": (receipt[:5] + b"\x01" + receipt[6:], DOWN),
        "unknown_kind": (frame_of_body(200, body, DOWN), DOWN),
        "reserved_kind": (frame_of_body(97, body, DOWN), DOWN),
        "kind_zero": (frame_of_body(0, body, DOWN), DOWN),
        "body_too_large": (receipt[:6] + struct.pack("<I", 65_537) + receipt[10:], DOWN),
        "damaged_body": (receipt[:-1] + bytes((receipt[-1] ^ 1,)), DOWN),
        "no_signature": (receipt[:18] + bytes(64) + receipt[82:], DOWN),
        "damaged_signature": (receipt[:18] + bytes((receipt[18] ^ 1,)) + receipt[19:], DOWN),
        "signed_by_a_stranger": (stranger, UP),
        "other_device": (receipt, Address(FEDERATION, "fedcba9876543210", "down")),
        "other_federation": (receipt, Address("letters", DEVICE, "down")),
        "other_direction": (gone, DOWN),
        "wrong_way": (frame_of_body(Gone.KIND, frames.parse(gone).body, DOWN), DOWN),
        "missing_field": (
            frame_of_body(Settled.KIND, msgspec.msgpack.encode([UPDATE, True]), DOWN),
            DOWN,
        ),
        "field_of_a_newer_minor_within_ours": (
            frame_of_body(Receipt.KIND, msgspec.msgpack.encode([UPDATE, 1]), DOWN),
            DOWN,
        ),
        "default_left_out": (
            frame_of_body(Available.KIND, msgspec.msgpack.encode(wide[:5]), UP),
            UP,
        ),
        "integer_for_a_float": (
            frame_of_body(Available.KIND, msgspec.msgpack.encode(whole), UP),
            UP,
        ),
        "integer_not_in_its_shortest_form": (
            frame_of_body(Gone.KIND, b"\x91\xcd\x00\x05", UP),
            UP,
        ),
        "map_for_an_array": (
            frame_of_body(Receipt.KIND, msgspec.msgpack.encode({"update_id": UPDATE}), DOWN),
            DOWN,
        ),
        "two_bodies": (frame_of_body(Receipt.KIND, body + body, DOWN), DOWN),
        "not_utf8": (
            frame_of_body(Settled.KIND, msgspec.msgpack.encode(settled)[:-7] + b"\xff" * 7, DOWN),
            DOWN,
        ),
        "nan": (frame_of_body(Available.KIND, msgspec.msgpack.encode(nan), UP), UP),
        "infinite_metric": (frame_of_body(5, msgspec.msgpack.encode(infinite), UP), UP),
        "out_of_bounds": (
            frame_of_body(Gone.KIND, msgspec.msgpack.encode([2**53 + 1]), UP),
            UP,
        ),
    }


def why_rejected(data: bytes, address: Address) -> str:
    """The stable word of the error that a frame is refused with."""
    try:
        frames.open_frame(data, address, key_of(address), CRYPTO)
    except RemoteProtocolError as error:
        return error.reason
    raise ValueError("the frame is accepted")


def rejected_vectors() -> dict[str, Any]:
    """Frames that are refused, each with the reason."""
    return {
        "protocol": VERSION,
        "frames": [
            {
                "name": name,
                "topic": address.topic,
                "public_key": key_of(address).hex(),
                "frame": data.hex(),
                "reason": why_rejected(data, address),
            }
            for name, (data, address) in rejected_frames().items()
        ],
    }


def newer_vectors() -> dict[str, Any]:
    """Frames of the next minor version, with a field at the end that this one has never seen."""
    made = []
    for name in ("receipt", "settled_counted", "invite", "available"):
        message, address = EXAMPLES[name]
        fields = fields_of(message)
        if isinstance(message, Invite):
            fields[4] = [*fields_of(message.plan), "a nested field of tomorrow"]
        body = msgspec.msgpack.encode([*fields, {"tomorrow": [1, None]}])
        data = frame_of_body(message.KIND, body, address, minor=limits.PROTOCOL_MINOR + 1)
        made.append(
            {
                "name": name,
                "message": type(message).__name__,
                "topic": address.topic,
                "public_key": key_of(address).hex(),
                "fields": plain(message),
                "frame": data.hex(),
            }
        )
    return {"protocol": f"{limits.PROTOCOL_MAJOR}.{limits.PROTOCOL_MINOR + 1}", "frames": made}


def identity_vectors() -> dict[str, Any]:
    """Names that follow from what they name."""
    tensors = example_tensors()["dense"][1]
    return {
        "device_id": [
            {"public_key": key.hex(), "device_id": device_id(key)}
            for key in (DEVICE_KEY, bytes(32), b"\xff" * 32)
        ],
        "coordinator_id": [
            {
                "public_key": COORDINATOR_KEY.hex(),
                "coordinator_id": coordinator_id(COORDINATOR_KEY),
                "enrolment_scope": ENROLMENT,
            }
        ],
        "update_id": [
            {
                "federation": federation,
                "round": number,
                "device": device,
                "update_id": update_id(federation, number, device).hex(),
            }
            for federation, number, device in (
                (FEDERATION, 12, DEVICE),
                (FEDERATION, 13, DEVICE),
                ("a", 2**53, "ffffffffffffffff"),
            )
        ],
        "token_proof": [
            {
                "secret": TOKEN_SECRET.hex(),
                "public_key": DEVICE_KEY.hex(),
                "proof": token_proof(TOKEN_SECRET, DEVICE_KEY).hex(),
            }
        ],
        "ed25519": [
            {
                "signing_seed": seed_of(address).hex(),
                "public_key": key_of(address).hex(),
                "message": b"potluck".hex(),
                "signature": signer_of(address).sign(b"potluck").hex(),
            }
            for address in (UP, DOWN)
        ],
        "schema_digest": [
            {
                "schema": plain_schema(schema),
                "canonical": msgspec.msgpack.encode(schema).hex(),
                "schema_digest": schema.digest,
            }
            for schema in (MODEL, SHARED, LONG)
        ],
        "model_digest": [
            {
                "schema": plain_schema(SHARED),
                "tensors": plain_tensors(SHARED, tensors),
                "model_digest": tensors_digest(SHARED, tensors),
            }
        ],
    }


def all_vectors() -> dict[str, dict[str, Any]]:
    """File name -> what is in it."""
    if {message.KIND for message, _ in EXAMPLES.values()} != set(MESSAGES):
        raise ValueError("a kind has no example")
    return {
        f"frames-{VERSION}.json": frame_vectors(),
        f"rejected-{VERSION}.json": rejected_vectors(),
        "newer-minor.json": newer_vectors(),
        "payloads-2.json": payload_vectors(),
        "bundles-1.json": bundle_vectors(),
        "descriptions-1.json": description_vectors(),
        "identities.json": identity_vectors(),
    }


def text_of(vectors: Mapping[str, Any]) -> str:
    """A file's text: the same for the same vectors."""
    return json.dumps(vectors, indent=1, allow_nan=False) + "\n"


def main() -> None:
    """Write every file."""
    DIRECTORY.mkdir(exist_ok=True)
    for name, vectors in all_vectors().items():
        (DIRECTORY / name).write_text(text_of(vectors), encoding="utf-8")
        sys.stdout.write(f"{DIRECTORY / name}\n")


if __name__ == "__main__":
    main()
