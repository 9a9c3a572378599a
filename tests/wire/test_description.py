"""What stands in a description comes out of it again, and nothing else is taken for one."""

import dataclasses
import hashlib
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.wire.make_descriptions import (
    artefact_of,
    manifests,
    plain_manifest,
    refused_descriptions,
)
from tests.wire.make_vectors import DIRECTORY
from wire import Description, Manifest, ManifestError, read_description
from wire.artefact import Probe
from wire.errors import RemoteProtocolError, TruncatedError

VECTORS = json.loads((DIRECTORY / "descriptions-1.json").read_text(encoding="utf-8"))


def assert_same(found: Manifest, manifest: Manifest) -> None:
    assert found.schema == manifest.schema
    assert list(found.tensors) == list(manifest.tensors)
    for name, array in manifest.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], array)
    assert found.artefact == manifest.artefact
    assert (found.head, found.flops_per_example) == (manifest.head, manifest.flops_per_example)


@pytest.mark.parametrize("name", list(manifests()))
def test_a_manifest_comes_out_as_it_went_in(name: str) -> None:
    manifest = manifests()[name]
    description = Description(manifest)
    assert_same(read_description(description.payload), manifest)
    assert description.payload_bytes == len(description.payload)
    assert description.digest == hashlib.sha256(description.payload).digest()
    # What comes out goes in again as the same bytes: one manifest, one form.
    assert Description(read_description(description.payload)).payload == description.payload


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
named = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
    st.tuples(shapes, st.sampled_from(["shared", "personal", "frozen"])),
    max_size=4,
)


@pytest.mark.slow
@given(named, st.none() | st.floats(0.0, 1e18), st.binary(max_size=64))
def test_any_model_comes_out_as_it_went_in(
    others: dict[str, Any], flops: float | None, file: bytes
) -> None:
    given_tensors = {"w": np.ones(2, np.float32)} | {
        name: np.full(shape, 0.5, np.float32) for name, (shape, _part) in others.items()
    }
    parts = {name: part for name, (_shape, part) in others.items()} | {"w": "shared"}
    manifest = Manifest(given_tensors, parts=parts, flops_per_example=flops, head=("w",))
    # No dimension of what a file takes is 0.
    if file and all(array.size for array in manifest.tensors.values()):
        manifest = dataclasses.replace(manifest, artefact=artefact_of(manifest, file))
    assert_same(read_description(Description(manifest).payload), manifest)


@pytest.mark.parametrize("name", list(refused_descriptions()))
def test_what_is_no_description_is_refused_with_a_typed_error(name: str) -> None:
    with pytest.raises(RemoteProtocolError):
        read_description(refused_descriptions()[name])


@pytest.mark.parametrize("name", list(manifests()))
@pytest.mark.slow
def test_no_altered_byte_is_more_than_a_typed_error_or_another_model(name: str) -> None:
    payload = Description(manifests()[name]).payload
    for at in range(len(payload)):
        for flip in (0x01, 0x80, 0xFF):
            altered = payload[:at] + bytes((payload[at] ^ flip,)) + payload[at + 1 :]
            try:
                found = read_description(altered)
            except RemoteProtocolError:
                continue
            assert Description(found).payload == altered


@pytest.mark.slow
@given(st.binary(max_size=200))
def test_no_bytes_at_all_are_more_than_a_typed_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        read_description(data)


def test_nothing_is_allocated_for_what_is_not_there() -> None:
    """The words promise a quarter of a gigabyte, and the bytes are not here."""
    lie = refused_descriptions()["artefact_too_long"]
    tracemalloc.start()
    with pytest.raises(TruncatedError):
        read_description(lie)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_first_values_can_be_written_to_and_are_nobody_elses() -> None:
    found = read_description(Description(plain_manifest()).payload)
    found.tensors["dense/kernel"][:] = 7.0
    assert found.tensors["dense/bias"].flags.writeable


def test_an_artefact_of_other_tensors_is_no_model_for_devices() -> None:
    other = artefact_of(Manifest({"w": np.zeros(3, np.float32)}))
    with pytest.raises(ManifestError, match="the artefact's parameters"):
        Description(plain_manifest(artefact=other))


def test_an_altered_file_is_no_model_for_devices() -> None:
    artefact = artefact_of(plain_manifest())
    altered = dataclasses.replace(artefact, data=artefact.data[:-1] + b"!")
    with pytest.raises(ManifestError, match="not the file"):
        Description(plain_manifest(artefact=altered))


def test_whole_numbers_where_the_words_have_others_are_made_such() -> None:
    artefact = artefact_of(plain_manifest())
    loose = dataclasses.replace(artefact, info=replace(artefact.info, probe=Probe(7, 1, (2, 1))))
    described = Description(plain_manifest(artefact=loose, flops_per_example=3))
    assert read_description(described.payload).flops_per_example == 3.0


# -- vectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["descriptions"], ids=lambda v: v["name"])
def test_every_description_is_read_and_made_again_to_the_byte(vector: dict[str, Any]) -> None:
    payload = bytes.fromhex(vector["description"])
    manifest = read_description(payload)
    assert_same(manifest, manifests()[vector["name"]])
    assert Description(manifest).payload == payload
    assert hashlib.sha256(payload).hexdigest() == vector["description_digest"]
    found = {name: array.astype("<f4").tobytes().hex() for name, array in manifest.tensors.items()}
    assert found == vector["tensors"]
    assert [spec["name"] for spec in vector["schema"]] == list(manifest.tensors)


@pytest.mark.parametrize("vector", VECTORS["refused"], ids=lambda v: v["name"])
def test_every_bad_description_is_refused_with_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read_description(bytes.fromhex(vector["description"]))
    assert caught.value.reason == vector["reason"]
