"""Whoever writes a device in another language checks it against these files; so do we."""

import hashlib
import json
import math
import struct
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from quantization import (
    CODEC_NAMES,
    Payload,
    Step,
    apply_bundle,
    codec_of,
    decode,
    encode,
    name_of,
    pack_bundle,
    unpack_bundle,
)
from quantization.codecs import CODECS
from tests.wire import make_vectors, reference
from tests.wire.examples import CRYPTO
from tests.wire.make_payloads import (
    HEX,
    SHA256,
    ZSTD_VERSION,
    payload_examples,
    plain_tensors,
    values_of,
)
from tests.wire.make_vectors import DIRECTORY, VERSION
from wire import (
    Address,
    Schema,
    Tensors,
    TensorSpec,
    coordinator_id,
    device_id,
    frames,
    limits,
    tensors_digest,
    token_proof,
    topics,
    update_id,
)
from wire.errors import RemoteProtocolError
from wire.messages import MESSAGES, Message, Plan


def entries(pattern: str, key: str) -> list[Any]:
    """Every vector of the files of a name, each with its own name as the test's."""
    found = [
        pytest.param(entry, id=f"{path.stem}:{entry['name']}")
        for path in sorted(DIRECTORY.glob(pattern))
        for entry in json.loads(path.read_text(encoding="utf-8"))[key]
    ]
    assert found
    return found


def from_plain(value: Any) -> Any:
    """JSON as the builtins that msgspec makes a message of."""
    if isinstance(value, str) and value.startswith(HEX):
        return bytes.fromhex(value.removeprefix(HEX))
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value


def message_of(name: str, fields: dict[str, Any]) -> Message:
    """A vector's message; the order of the fields is the file's, which is the wire's."""
    struct = {message.__name__: message for message in MESSAGES.values()}[name]
    values = {key: from_plain(value) for key, value in fields.items()}
    if "plan" in values:
        values["plan"] = list(values["plan"].values())
    return cast("Message", msgspec.convert(list(values.values()), type=struct))


def schema_of(plain: list[Any]) -> Schema:
    return Schema(tuple(msgspec.convert(spec, type=TensorSpec) for spec in plain))


def tensors_of(schema: Schema, plain: dict[str, str]) -> Tensors:
    return {
        spec.name: np.frombuffer(bytes.fromhex(plain[spec.name]), "<f4")
        .astype(np.float32)
        .reshape(spec.shape)
        for spec in schema.tensors
    }


# -- frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", entries(f"frames-{limits.PROTOCOL_MAJOR}.*.json", "frames"))
def test_every_frame_of_this_and_older_minors_opens(vector: dict[str, Any]) -> None:
    address = topics.parse(vector["topic"])
    assert address == Address(vector["scope"], vector["device"], vector["direction"])
    data, key = bytes.fromhex(vector["frame"]), bytes.fromhex(vector["public_key"])
    opened = frames.open_frame(data, address, key, CRYPTO)
    assert vector["kind"] == opened.KIND
    assert opened == message_of(vector["message"], vector["fields"])


@pytest.mark.parametrize("vector", entries(f"frames-{VERSION}.json", "frames"))
def test_every_frame_of_this_minor_is_made_again_to_the_byte(vector: dict[str, Any]) -> None:
    address = Address(vector["scope"], vector["device"], vector["direction"])
    signer = CRYPTO.signer(bytes.fromhex(vector["signing_seed"]))
    message = message_of(vector["message"], vector["fields"])
    assert signer.public_key.hex() == vector["public_key"]
    assert frames.seal(message, address, signer).hex() == vector["frame"]
    assert list(vector["fields"]) == list(message.__struct_fields__)
    if "plan" in vector["fields"]:
        assert list(vector["fields"]["plan"]) == list(Plan.__struct_fields__)
    frame = frames.parse(bytes.fromhex(vector["frame"]))
    assert (
        frames.statement(address, frame.minor, frame.kind, frame.body).hex() == vector["statement"]
    )


@pytest.mark.parametrize("vector", entries(f"rejected-{VERSION}.json", "frames"))
def test_every_bad_frame_is_refused_with_its_reason(vector: dict[str, Any]) -> None:
    data, key = bytes.fromhex(vector["frame"]), bytes.fromhex(vector["public_key"])
    with pytest.raises(RemoteProtocolError) as caught:
        frames.open_frame(data, topics.parse(vector["topic"]), key, CRYPTO)
    assert caught.value.reason == vector["reason"]


@pytest.mark.parametrize("vector", entries("newer-minor.json", "frames"))
def test_what_a_newer_minor_appends_is_ignored(vector: dict[str, Any]) -> None:
    data, key = bytes.fromhex(vector["frame"]), bytes.fromhex(vector["public_key"])
    opened = frames.open_frame(data, topics.parse(vector["topic"]), key, CRYPTO)
    assert opened == message_of(vector["message"], vector["fields"])


def test_every_kind_has_a_vector() -> None:
    made = json.loads((DIRECTORY / f"frames-{VERSION}.json").read_text(encoding="utf-8"))["frames"]
    assert {vector["kind"] for vector in made} == set(MESSAGES)
    assert {vector["direction"] for vector in made if vector["kind"] == 6} == {"up", "down"}


# -- payloads and bundles ----------------------------------------------------------------------

PAYLOADS = json.loads((DIRECTORY / "payloads-2.json").read_text(encoding="utf-8"))
REFUSED = [
    pytest.param(PAYLOADS["refused"]["schema"], vector, id=vector["name"])
    for vector in PAYLOADS["refused"]["payloads"]
]


@pytest.mark.parametrize("vector", entries("payloads-*.json", "payloads"))
def test_every_payload_decodes_to_the_bit(vector: dict[str, Any]) -> None:
    schema, payload = schema_of(vector["schema"]), bytes.fromhex(vector["payload"])
    assert codec_of(payload) == name_of(vector["codec"])
    assert list(Payload(payload, schema).codecs) == vector["codecs"]
    assert values_of(schema, decode(payload, schema)) == vector["decoded"]


@pytest.mark.parametrize("vector", entries("payloads-*.json", "payloads"))
def test_every_payload_is_made_again_to_the_byte(vector: dict[str, Any]) -> None:
    schema = schema_of(vector["schema"])
    _codec, _schema, tensors = payload_examples()[vector["name"]]
    assert values_of(schema, tensors) == vector["tensors"]
    payload = encode(vector["codec"], tensors, schema, seed=vector["seed"])
    # Another release of zstd may find other matches; what it inflates to is the same.
    if PAYLOADS["zstd"] == ZSTD_VERSION:
        assert payload.hex() == vector["payload"]
    assert values_of(schema, decode(payload, schema)) == vector["decoded"]


@pytest.mark.parametrize("vector", entries("payloads-*.json", "payloads"))
def test_every_payload_is_read_from_the_page_alone_to_the_bit(vector: dict[str, Any]) -> None:
    """Plain loops that share no line with the codecs: what a C device would do."""
    shapes = [(spec["name"], math.prod(spec["shape"])) for spec in vector["schema"]]
    digest = schema_of(vector["schema"]).digest
    read = reference.decode(bytes.fromhex(vector["payload"]), shapes, bytes.fromhex(digest))
    for name, values in read.items():
        data = struct.pack(f"<{len(values)}f", *values)
        kept = vector["decoded"][name]
        if kept.startswith(SHA256):
            assert SHA256 + hashlib.sha256(data).hexdigest() == kept
        else:
            assert data.hex() == kept


@pytest.mark.parametrize(("schema", "vector"), REFUSED)
def test_every_bad_payload_is_refused_with_its_reason(
    schema: list[Any], vector: dict[str, Any]
) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(bytes.fromhex(vector["payload"]), schema_of(schema))
    assert caught.value.reason == vector["reason"]


def test_every_codec_mode_and_kind_of_chunk_has_a_payload() -> None:
    read = [
        Payload(bytes.fromhex(vector["payload"]), schema_of(vector["schema"]))
        for vector in PAYLOADS["payloads"]
    ]
    assert {name for each in read for name in each.codecs if name} == set(CODECS)
    assert {codec_of(bytes.fromhex(v["payload"])) for v in PAYLOADS["payloads"]} == set(CODEC_NAMES)
    bodies = [body for each in read for body in each._bodies]
    assert {body.mode for body in bodies} == {0, 1, 2, 3, 4, 5}
    assert {body.frame_bytes > 0 for body in bodies} == {True, False}
    assert max(len(each.blocks) for each in read) > 1
    sizes = {
        piece.size
        for each in read
        for block in each.blocks
        for piece in block.pieces
        if each.codecs[piece.tensor] in ("eden", "eden1")
    }
    assert {5, 63, 64, 100, 128, 256, 600} <= sizes


@pytest.mark.parametrize("vector", entries("bundles-*.json", "bundles"))
def test_every_bundle_is_unpacked_applied_and_packed_again(vector: dict[str, Any]) -> None:
    schema, data = schema_of(vector["schema"]), bytes.fromhex(vector["bundle"])
    bundle = unpack_bundle(data)
    steps = tuple(Step(step["version"], bytes.fromhex(step["payload"])) for step in vector["steps"])
    assert (bundle.from_version, bundle.steps) == (vector["from_version"], steps)
    assert pack_bundle(bundle.from_version, bundle.steps) == data
    held = {} if vector["held"] is None else tensors_of(schema, vector["held"])
    tensors = apply_bundle(bundle, schema, held)
    assert plain_tensors(schema, tensors) == vector["tensors"]
    assert tensors_digest(schema, tensors) == vector["model_digest"]


# -- identities --------------------------------------------------------------------------------

IDENTITIES = json.loads((DIRECTORY / "identities.json").read_text(encoding="utf-8"))


def test_names_follow_from_keys() -> None:
    for vector in IDENTITIES["device_id"]:
        assert device_id(bytes.fromhex(vector["public_key"])) == vector["device_id"]
    for vector in IDENTITIES["coordinator_id"]:
        name = coordinator_id(bytes.fromhex(vector["public_key"]))
        assert name == vector["coordinator_id"]
        assert topics.enrolment_scope(name) == vector["enrolment_scope"]


def test_update_ids_follow_from_federation_round_and_device() -> None:
    for vector in IDENTITIES["update_id"]:
        made = update_id(vector["federation"], vector["round"], vector["device"])
        assert made.hex() == vector["update_id"]


def test_proofs_follow_from_secret_and_key() -> None:
    for vector in IDENTITIES["token_proof"]:
        secret, key = bytes.fromhex(vector["secret"]), bytes.fromhex(vector["public_key"])
        assert token_proof(secret, key).hex() == vector["proof"]


def test_signatures_follow_from_seeds() -> None:
    for vector in IDENTITIES["ed25519"]:
        signer = CRYPTO.signer(bytes.fromhex(vector["signing_seed"]))
        assert signer.public_key.hex() == vector["public_key"]
        assert signer.sign(bytes.fromhex(vector["message"])).hex() == vector["signature"]


def test_digests_follow_from_schemas_and_tensors() -> None:
    for vector in IDENTITIES["schema_digest"]:
        schema = schema_of(vector["schema"])
        assert msgspec.msgpack.encode(schema).hex() == vector["canonical"]
        assert schema.digest == vector["schema_digest"]
    for vector in IDENTITIES["model_digest"]:
        schema = schema_of(vector["schema"])
        tensors = tensors_of(schema, vector["tensors"])
        assert tensors_digest(schema, tensors) == vector["model_digest"]


# -- the files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(make_vectors.all_vectors()))
def test_the_files_are_what_the_generator_makes(name: str) -> None:
    """If this fails: `python -m tests.wire.make_vectors`, and say why the wire has changed."""
    kept = (DIRECTORY / name).read_text(encoding="utf-8")
    if json.loads(kept).get("zstd", ZSTD_VERSION) != ZSTD_VERSION:
        pytest.skip("made with another release of zstd")
    assert make_vectors.text_of(make_vectors.all_vectors()[name]) == kept


def test_no_file_is_left_over() -> None:
    """Files of older minors stay; nothing else may."""
    made = set(make_vectors.all_vectors())
    older = {
        path.name
        for kind in ("frames", "rejected")
        for path in DIRECTORY.glob(f"{kind}-{limits.PROTOCOL_MAJOR}.*.json")
    }
    assert {path.name for path in DIRECTORY.iterdir()} == made | older
