"""Messages, keys and addresses that the tests of the wire share: one example of every kind."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from wire import Address, Ed25519, device_id, frames, limits, update_id
from wire.identity import coordinator_id, token_proof
from wire.messages import (
    MESSAGES,
    Available,
    Body,
    Chunk,
    ComeBackAt,
    Declined,
    DescriptionOffer,
    DescriptionRequest,
    Enrolled,
    EnrolRequest,
    EvaluateInvite,
    EvaluationReport,
    Failed,
    FetchRequest,
    Gone,
    Invite,
    Leave,
    Message,
    ModelOffer,
    Plan,
    Receipt,
    Refused,
    Release,
    ReleaseVeto,
    Revoked,
    Settled,
    UpdateOffer,
    UploadStatus,
)
from wire.signing import Signer
from wire.topics import enrolment_scope

CRYPTO: Final = Ed25519()
DEVICE_SEED: Final = bytes(range(32))
COORDINATOR_SEED: Final = bytes(range(32, 64))
STRANGER_SEED: Final = bytes(range(64, 96))
DEVICE_KEY: Final = CRYPTO.signer(DEVICE_SEED).public_key
COORDINATOR_KEY: Final = CRYPTO.signer(COORDINATOR_SEED).public_key
STRANGER_KEY: Final = CRYPTO.signer(STRANGER_SEED).public_key

FEDERATION: Final = "digits"
DEVICE: Final = device_id(DEVICE_KEY)
TOKEN_ID: Final = "00112233aabbccdd"  # noqa: S105 - public, as every token's id
TOKEN_SECRET: Final = bytes(range(96, 128))
ENROLMENT: Final = enrolment_scope(coordinator_id(COORDINATOR_KEY))

UP: Final = Address(FEDERATION, DEVICE, "up")
DOWN: Final = Address(FEDERATION, DEVICE, "down")
ENROL_UP: Final = Address(ENROLMENT, TOKEN_ID, "up")
ENROL_DOWN: Final = Address(ENROLMENT, TOKEN_ID, "down")

CHECK_IN: Final = (3 << 32) | 7
UPDATE: Final = update_id(FEDERATION, 12, DEVICE)
DIGEST: Final = bytes(range(160, 192))
OTHER_DIGEST: Final = bytes(range(192, 224))
TRANSFER: Final = DIGEST[:16]
SCHEMA_DIGEST: Final = bytes(range(224, 256))

# Named examples, in the order of kinds. Numbers are chosen to need every MessagePack width.
EXAMPLES: Final[Mapping[str, tuple[Message, Address]]] = {
    "enrol_request": (
        EnrolRequest(DEVICE_KEY, token_proof(TOKEN_SECRET, DEVICE_KEY), "pi-5"),
        ENROL_UP,
    ),
    "available_first": (Available(1, 120.0, -1, -1, SCHEMA_DIGEST), UP),
    "available": (
        Available(
            check_in=CHECK_IN,
            window_s=90.5,
            held_version=300,
            released_version=299,
            schema_digest=SCHEMA_DIGEST,
            device_class="phone-mid",
            battery_fraction=0.75,
            charging=False,
            metered=True,
            codecs=("ecq_sr", "q8", "raw"),
            stays_s=14_400.0,
        ),
        UP,
    ),
    "available_described": (
        Available(2, 120.0, 0, 0, SCHEMA_DIGEST, description_digest=DIGEST),
        UP,
    ),
    "declined_withdrawn": (Declined(CHECK_IN, 0, "battery_low"), UP),
    "declined_invitation": (Declined(CHECK_IN, 12, "metered", "on a cellular network"), UP),
    "fetch_request_first": (FetchRequest(300, -1, 130_048), UP),
    "fetch_request_resumed": (FetchRequest(300, 298, 130_048, TRANSFER, b"\x05"), UP),
    "update_offer": (
        UpdateOffer(
            update_id=UPDATE,
            round=12,
            base_version=300,
            payload_bytes=70_000,
            payload_digest=OTHER_DIGEST,
            chunk_bytes=1_024,
            num_examples=480,
            chunks_follow=True,
            metrics={"base_loss": 0.5, "base_accuracy": 0.8125},
        ),
        UP,
    ),
    "chunk_up": (Chunk(UPDATE, 68, b"the last piece"), UP),
    "chunk_down": (Chunk(TRANSFER, 0, bytes(300)), DOWN),
    "failed": (Failed(12, "trainer_failed", "ValueError: no such file"), UP),
    "gone": (Gone(CHECK_IN), UP),
    "leave": (Leave(), UP),
    "description_request_first": (DescriptionRequest(130_048, 268_435_456), UP),
    "description_request_resumed": (
        DescriptionRequest(130_048, 4_000_000, OTHER_DIGEST, TRANSFER, b"\x05"),
        UP,
    ),
    "evaluation_report": (EvaluationReport(12, 300, 0.25, 96, {"accuracy": 0.9375}), UP),
    "release_veto": (
        ReleaseVeto(
            300,
            "loss_is_worse",
            "0.5 instead of 0.25",
            {"loss_candidate": 0.5, "loss_current": 0.25, "num_examples": 96.0},
        ),
        UP,
    ),
    "enrolled": (
        Enrolled(DEVICE, FEDERATION, b"-----BEGIN CERTIFICATE-----\n...\n"),
        ENROL_DOWN,
    ),
    "refused_enrolment": (Refused(EnrolRequest.KIND, "bad_token", "expired"), ENROL_DOWN),
    "refused": (Refused(FetchRequest.KIND, "unknown_version"), DOWN),
    "invite": (
        Invite(
            check_in=CHECK_IN,
            round=12,
            base_version=300,
            base_digest=DIGEST,
            plan=Plan(2, 16, 0.05, 2**53, 1.5, 0.01),
            codec="ecq_sr",
            deadline_s=59.5,
            chunk_bytes_max=130_048,
        ),
        DOWN,
    ),
    "come_back_at": (ComeBackAt(CHECK_IN, 3_600.0, "run_over"), DOWN),
    "model_offer": (
        ModelOffer(TRANSFER, 300, 298, 2_500, DIGEST, 1_024, OTHER_DIGEST),
        DOWN,
    ),
    "upload_status": (UploadStatus(UPDATE, b"\xff\x03"), DOWN),
    "receipt": (Receipt(UPDATE), DOWN),
    "settled_counted": (Settled(UPDATE, counted=True, reason="counted"), DOWN),
    "settled_not_counted": (Settled(UPDATE, counted=False, reason="round_closed"), DOWN),
    "release": (Release(300, OTHER_DIGEST), DOWN),
    "revoked": (Revoked("owner_left"), DOWN),
    "refused_outdated": (Refused(Available.KIND, "description_outdated"), DOWN),
    "description_offer": (DescriptionOffer(TRANSFER, 400_000, DIGEST, 130_048), DOWN),
    "evaluate_invite": (
        EvaluateInvite(CHECK_IN, 12, 300, DIGEST, Plan(1, 64, 0.1, 7), 45.5),
        DOWN,
    ),
}


def seed_of(address: Address) -> bytes:
    """The private key of whoever publishes there."""
    return DEVICE_SEED if address.direction == "up" else COORDINATOR_SEED


def signer_of(address: Address) -> Signer:
    """Whoever publishes there."""
    return CRYPTO.signer(seed_of(address))


def key_of(address: Address) -> bytes:
    """The public key of whoever publishes there."""
    return DEVICE_KEY if address.direction == "up" else COORDINATOR_KEY


def seal(message: Message, address: Address) -> bytes:
    """A frame as its rightful sender makes it."""
    return frames.seal(message, address, signer_of(address))


def frame_of_body(
    kind: int, body: bytes, address: Address, *, minor: int = limits.PROTOCOL_MINOR
) -> bytes:
    """A frame with a right length, digest and signature around any body at all."""
    signature = signer_of(address).sign(frames.statement(address, minor, kind, body))
    prefix = hashlib.sha256(body).digest()[:8]
    return frames._HEADER.pack(b"PL", 1, minor, kind, 0, len(body), prefix, signature) + body


def fields_of(message: msgspec.Struct) -> list[Any]:
    """A message's fields, in the order of the wire."""
    return [getattr(message, name) for name in message.__struct_fields__]


def address_for(kind: int) -> Address:
    """Where a message of this kind may travel."""
    message: type[Body] = MESSAGES[kind]
    if message.UPLINK is False:
        return DOWN
    return UP
