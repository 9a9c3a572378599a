"""The vectors of descriptions, and the models that they are of; `make_vectors` writes them."""

import hashlib
import struct
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from tests.wire.make_payloads import MODEL, plain, plain_schema, plain_tensors
from wire import Artefact, ArtefactInfo, Description, Manifest, Tensors, limits, read_description
from wire.artefact import Probe
from wire.errors import RemoteProtocolError

FILE: Final = b"TFL3 is not what this is; nobody opens it here"


def first_values(*, seed: int = 1) -> Tensors:
    """Of `MODEL`; multiples of 1/64."""
    return {
        spec.name: ((np.arange(spec.size, dtype=np.float32) - seed) / 64.0).reshape(spec.shape)
        for spec in MODEL.tensors
    }


def plain_manifest(**changes: Any) -> Manifest:
    """A model without an artefact."""
    given: dict[str, Any] = {
        "tensors": first_values(),
        "parts": {spec.name: spec.part for spec in MODEL.tensors},
        "head": ("dense/bias",),
    }
    return Manifest(**(given | changes))


def artefact_of(manifest: Manifest, data: bytes = FILE) -> Artefact:
    """Words about a file that is none."""
    info = ArtefactInfo(
        sha256=hashlib.sha256(data).digest(),
        file_bytes=len(data),
        batch=8,
        x_shape=(3,),
        x_dtype="float32",
        x_values=0,
        y_shape=(),
        y_dtype="int32",
        classes=4,
        loss="softmax",
        parameters=manifest.schema.tensors,
        operators=((9, 1), (114, 1)),
        probe=Probe(seed=7, learning_rate=0.5, losses=(1.5, 1.25)),
    )
    return Artefact(data, info)


def litert_manifest() -> Manifest:
    """A model with an artefact, and a cost that is said."""
    manifest = plain_manifest(flops_per_example=1_200.0)
    return plain_manifest(flops_per_example=1_200.0, artefact=artefact_of(manifest))


def manifests() -> dict[str, Manifest]:
    """Named models."""
    return {"without_artefact": plain_manifest(), "with_artefact": litert_manifest()}


def with_words(payload: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A description whose words say something else; what follows them stays."""
    size = struct.unpack_from("<BI", payload)[1]
    words = msgspec.msgpack.decode(payload[5 : 5 + size])
    change(words)
    written = msgspec.msgpack.encode(words)
    return struct.pack("<BI", 1, len(written)) + written + payload[5 + size :]


def refused_descriptions() -> dict[str, bytes]:
    """Descriptions that look right at a glance."""
    good, litert = (Description(manifest).payload for manifest in manifests().values())
    size = struct.unpack_from("<BI", good)[1]
    values_at = 5 + size
    nan = struct.pack("<f", float("nan"))
    huge = [{"name": "w", "shape": [2**40], "dtype": "float32", "part": "shared"}]

    def tensor(words: dict[str, Any], **said: Any) -> None:
        words["schema"]["tensors"][0].update(said)

    def unshared(words: dict[str, Any]) -> None:
        for spec in words["schema"]["tensors"]:
            spec["part"] = "frozen"
        words["head"] = []

    return {
        "empty": b"",
        "other_layout": b"\x02" + good[1:],
        "words_too_large": struct.pack("<BI", 1, limits.DESCRIPTION_WORDS_BYTES_MAX + 1),
        "words_cut_short": good[: values_at - 1],
        "words_are_no_map": struct.pack("<BI", 1, 1) + b"\x01" + good[values_at:],
        "words_not_canonical": struct.pack("<BI", 1, size + 2)
        + good[5:values_at].replace(b"\x84\xa6schema", b"\xde\x00\x04\xa6schema")
        + good[values_at:],
        "an_unknown_word": with_words(good, lambda words: words.update(code="os:system")),
        "a_word_is_missing": with_words(good, lambda words: words.pop("head")),
        "values_cut_short": good[:-1],
        "trailing_byte": good + b"\x00",
        "not_finite": good[:values_at] + nan + good[values_at + 4 :],
        "a_tensor_of_2_to_the_40": with_words(
            good, lambda words: words["schema"].update(tensors=huge)
        ),
        "negative_dimension": with_words(good, lambda words: tensor(words, shape=[-3, -4])),
        "repeated_name": with_words(good, lambda words: tensor(words, name="scale")),
        "name_with_nul": with_words(good, lambda words: tensor(words, name="\x00")),
        "other_dtype": with_words(good, lambda words: tensor(words, dtype="float64")),
        "nothing_shared": with_words(good, unshared),
        "head_not_shared": with_words(good, lambda words: words.update(head=["embedding"])),
        "cost_not_finite": with_words(
            good, lambda words: words.update(flops_per_example=float("inf"))
        ),
        "artefact_of_other_tensors": with_words(
            litert, lambda words: words["artefact"]["parameters"].pop()
        ),
        "artefact_cut_short": litert[:-1],
        "artefact_altered": litert[:-1] + b"!",
        "artefact_too_long": with_words(
            litert, lambda words: words["artefact"].update(file_bytes=limits.TRANSFER_BYTES_MAX)
        ),
    }


def why_refused(payload: bytes) -> str:
    """The stable word of the error that a description is refused with."""
    try:
        read_description(payload)
    except RemoteProtocolError as error:
        return error.reason
    raise ValueError("the description is accepted")


def description_vectors() -> dict[str, Any]:
    """Descriptions with all that is in them, and such as are refused."""
    made = []
    for name, manifest in manifests().items():
        description = Description(manifest)
        artefact = manifest.artefact
        made.append(
            {
                "name": name,
                "schema": plain_schema(manifest.schema),
                "tensors": plain_tensors(manifest.schema, manifest.tensors),
                "head": list(manifest.head),
                "flops_per_example": manifest.flops_per_example,
                "artefact": None if artefact is None else plain(artefact.info),
                "file": None if artefact is None else artefact.data.hex(),
                "description": description.payload.hex(),
                "description_digest": description.digest.hex(),
            }
        )
    refused = [
        {"name": name, "description": payload.hex(), "reason": why_refused(payload)}
        for name, payload in refused_descriptions().items()
    ]
    return {"layout": 1, "descriptions": made, "refused": refused}
