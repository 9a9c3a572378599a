"""The vectors of payloads and bundles; `make_vectors` writes them."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
import zstandard
from numpy.typing import NDArray

from quantization import (
    CODEC_NAMES,
    Payload,
    Step,
    apply_bundle,
    decode,
    encode,
    pack_bundle,
    unpack_bundle,
)
from tests.quantization.lies import LIES
from tests.quantization.lies import ONE as LIED_TO
from wire import Schema, Tensors, TensorSpec, tensors_digest
from wire.errors import SchemaMismatchError

ZSTD_VERSION: Final = ".".join(map(str, zstandard.ZSTD_VERSION))
HEX: Final = "hex:"

# The whole model; only its shared part travels.
MODEL: Final = Schema(
    (
        TensorSpec("dense/kernel", (3, 4)),
        TensorSpec("dense/bias", (4,)),
        TensorSpec("scale", ()),
        TensorSpec("none", (0, 2)),
        TensorSpec("head", (2,), part="personal"),
        TensorSpec("embedding", (2, 2), part="frozen"),
    )
)
SHARED: Final = MODEL.shared
LONG: Final = Schema((TensorSpec("w", (64,)),))
SEED: Final = 7
SHA256: Final = "sha256:"
LONGEST_HEX: Final = 5_000


def plain(value: Any) -> Any:
    """A field as JSON: bytes as "hex:...", a nested struct by its names."""
    if isinstance(value, bytes):
        return HEX + value.hex()
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def plain_tensors(schema: Schema, tensors: Tensors) -> dict[str, str]:
    """Each tensor as the hex of its little-endian float32 bytes, first index slowest."""
    return {spec.name: tensors[spec.name].astype("<f4").tobytes().hex() for spec in schema.tensors}


def plain_schema(schema: Schema) -> list[dict[str, Any]]:
    """A schema as JSON."""
    return [plain(spec) for spec in schema.tensors]


def example_tensors() -> dict[str, tuple[Schema, Tensors]]:
    """Tensors that reach every mode of every codec. Multiples of 1/64, so that sums are exact."""
    ramp = (np.arange(12, dtype=np.float32).reshape(3, 4) - 5.0) / 4.0
    tiny = SHARED.zeros()
    tiny["dense/bias"][:] = (0.015625, -0.015625, 0.015625, 0.015625)
    outlier, heavy, giant = (np.zeros(64, np.float32) for _ in range(3))
    outlier[:12] = np.tile((0.25, -0.5, 0.25), 4)
    outlier[[20, 41]] = (-16.0, 9.0)
    heavy[:] = np.tile((1.0, -3.0, 2.0, 0.5), 16)
    giant[:] = np.where(np.arange(64) % 8 == 0, 1.0, 0.0)
    return {
        "dense": (
            SHARED,
            {
                "dense/kernel": ramp,
                "dense/bias": np.array((0.5, -0.25, 0.0, 0.125), np.float32),
                "scale": np.array(-1.5, np.float32),
                "none": np.zeros((0, 2), np.float32),
            },
        ),
        "nearly_zero": (SHARED, tiny),
        "outliers": (LONG, {"w": outlier}),
        "heavy": (LONG, {"w": heavy}),
        "sparse": (LONG, {"w": giant}),
    }


def wide_tensors() -> dict[str, tuple[Schema, Tensors, tuple[str, ...]]]:
    """Chunks of every kind, and blocks; with the codecs that they are for."""
    waves = {size: wave(size) for size in (5, 63, 100, 128, 256, 600)}
    chunks = Schema(tuple(TensorSpec(f"w{size}", (size,)) for size in waves))
    spikes = np.zeros(70_000, np.float32)
    spikes[::997] = np.tile((0.5, -0.25, 3.0), 24)[:71]
    spikes[-1] = -200.0
    blocks = Schema((TensorSpec("large", (70_000,)), TensorSpec("b", (4,)), TensorSpec("z", (99,))))
    few = np.array((1.0, 2.0, -3.0, 0.5), np.float32)
    return {
        "chunks": (
            chunks,
            {f"w{size}": values for size, values in waves.items()},
            ("eden1", "eden", "eden:1", "auto"),
        ),
        "modes": (LONG, {"w": wave(64)}, ("ecq_sr:0.02", "ecq_sr:0.001", "ecq:0.3")),
        "far": (LONG, {"w": example_tensors()["outliers"][1]["w"]}, ("ecq:0.01", "ecq_sr:0.01")),
        "blocks": (
            blocks,
            {"large": spikes, "b": few, "z": np.zeros(99, np.float32)},
            ("ecq", "ecq_sr:2", "auto", "topk_sign:0.0002"),
        ),
    }


def wave(size: int) -> NDArray[np.float32]:
    """Values without a pattern: multiples of 1/64 between -8 and 8."""
    numbers = (np.arange(size, dtype=np.int64) * 2_654_435_761) % 2**32 >> 22
    return (numbers.astype(np.float32) - np.float32(512.0)) / np.float32(64.0)


def values_of(schema: Schema, tensors: Tensors) -> dict[str, str]:
    """As `plain_tensors`; of a large tensor its SHA-256 alone."""
    return {
        name: SHA256 + hashlib.sha256(bytes.fromhex(text)).hexdigest()
        if len(text) > LONGEST_HEX
        else text
        for name, text in plain_tensors(schema, tensors).items()
    }


def payload_vector(name: str, codec: str, schema: Schema, tensors: Tensors) -> dict[str, Any]:
    """One payload, what was sent, and what it reads as."""
    payload = encode(codec, tensors, schema, seed=SEED)
    return {
        "name": f"{name}_{codec}",
        "codec": codec,
        "seed": SEED,
        "schema": plain_schema(schema),
        "tensors": values_of(schema, tensors),
        "payload": payload.hex(),
        "codecs": list(Payload(payload, schema).codecs),
        "decoded": values_of(schema, decode(payload, schema)),
    }


def payload_examples() -> dict[str, tuple[str, Schema, Tensors]]:
    """What each payload's vector is made of, by name."""
    made = {
        f"{name}_{codec}": (codec, schema, tensors)
        for name, (schema, tensors) in example_tensors().items()
        for codec in CODEC_NAMES
    }
    for name, (schema, tensors, codecs) in wide_tensors().items():
        made |= {f"{name}_{codec}": (codec, schema, tensors) for codec in codecs}
    return made


def payload_vectors() -> dict[str, Any]:
    """Each codec over each set of tensors, and payloads that are refused."""
    refused = [
        {
            "name": name.replace(" ", "_"),
            "payload": forged.data.hex(),
            "reason": error.reason,
        }
        for name, (forged, error, _why) in LIES.items()
        if forged.made is LIED_TO or error is SchemaMismatchError
    ]
    return {
        "layout": 2,
        "zstd": ZSTD_VERSION,
        "payloads": [
            payload_vector(name.rpartition("_" + codec)[0], codec, schema, tensors)
            for name, (codec, schema, tensors) in payload_examples().items()
        ],
        "refused": {"schema": plain_schema(LIED_TO), "payloads": refused},
    }


def payload_seeds() -> list[bytes]:
    """Payloads for a fuzzer to start from."""
    return [
        encode(codec, tensors, schema, seed=SEED)
        for codec, schema, tensors in payload_examples().values()
        if schema.parameters <= LONGEST_HEX
    ]


def bundle_seeds() -> list[bytes]:
    """Bundles for a fuzzer to start from."""
    return [bytes.fromhex(vector["bundle"]) for vector in bundle_vectors()["bundles"]]


def bundle_vectors() -> dict[str, Any]:
    """A snapshot, and a chain of deltas on top of it."""
    tensors = example_tensors()["dense"][1]
    held = {name: (value * 2.0).astype(np.float32) for name, value in tensors.items()}
    chains: Mapping[str, tuple[int, tuple[Step, ...]]] = {
        "snapshot": (-1, (Step(3, encode("raw", held, SHARED, seed=0)),)),
        "deltas": (
            3,
            (
                Step(4, encode("ecq", tensors, SHARED, seed=4)),
                Step(6, encode("q8", tensors, SHARED, seed=6)),
            ),
        ),
    }
    made = []
    for name, (from_version, steps) in chains.items():
        data = pack_bundle(from_version, steps)
        after = apply_bundle(unpack_bundle(data), SHARED, held)
        made.append(
            {
                "name": name,
                "schema": plain_schema(SHARED),
                "from_version": from_version,
                "steps": [{"version": s.version, "payload": s.payload.hex()} for s in steps],
                "held": plain_tensors(SHARED, held) if from_version >= 0 else None,
                "bundle": data.hex(),
                "tensors": plain_tensors(SHARED, after),
                "model_digest": tensors_digest(SHARED, after),
            }
        )
    return {"layout": 1, "zstd": ZSTD_VERSION, "bundles": made}
