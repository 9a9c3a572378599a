"""Whoever writes a device in another language checks it against these files; so do we."""

import json
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from quantization import apply_bundle, codec_of, decode, encode, pack_bundle, unpack_bundle
from quantization.bundle import Step
from quantization.codecs import CODECS
from tests.wire import make_vectors
from tests.wire.examples import CRYPTO
from tests.wire.make_vectors import DIRECTORY, HEX, VERSION, ZSTD_VERSION, plain_tensors
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


@pytest.mark.parametrize("vector", entries("rejected-*.json", "frames"))
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

MADE_WITH = json.loads((DIRECTORY / "payloads-1.json").read_text(encoding="utf-8"))["zstd"]


@pytest.mark.parametrize("vector", entries("payloads-*.json", "payloads"))
def test_every_payload_decodes_to_the_bit(vector: dict[str, Any]) -> None:
    schema, payload = schema_of(vector["schema"]), bytes.fromhex(vector["payload"])
    assert codec_of(payload) == vector["codec"]
    assert payload[0] == vector["number"] == CODECS[vector["codec"]].number
    assert make_vectors.raw_content(payload).hex() == vector["content"]
    assert plain_tensors(schema, decode(payload, schema)) == vector["decoded"]


@pytest.mark.parametrize("vector", entries("payloads-*.json", "payloads"))
def test_every_payload_is_made_again_to_the_byte(vector: dict[str, Any]) -> None:
    schema = schema_of(vector["schema"])
    if "tensors" in vector:
        tensors = tensors_of(schema, vector["tensors"])
        payload = encode(vector["codec"], tensors, schema, seed=vector["seed"])
        assert make_vectors.raw_content(payload).hex() == vector["content"]
    else:
        content = bytes.fromhex(vector["content"])
        payload = make_vectors.payload_around(content, vector["number"], schema)
    assert payload[:14].hex() == vector["payload"][:28]
    # Another release of zstd may find other matches; what it inflates to is the same.
    if MADE_WITH == ZSTD_VERSION:
        assert payload.hex() == vector["payload"]


def test_every_codec_has_a_payload() -> None:
    made = [param.values[0] for param in entries("payloads-*.json", "payloads")]
    assert {vector["number"] for vector in made} == {codec.number for codec in CODECS.values()}


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
