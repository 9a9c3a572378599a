"""Digests of payloads of fixed tensors: the same on every machine, Python and NumPy.

`python -m tests.quantization.digests` prints them, in whatever environment it runs; it needs what a
device's install has and nothing else.
"""

import hashlib
import json
import sys
from typing import Any

import numpy as np
import zstandard

from quantization import Accumulator, AutoRule, DownlinkChain, Payload, decode, encode
from quantization.downlink import ChainState
from tests.quantization.forge import TROUBLE, schema, tensors_of

SPECS = (
    "raw",
    "f16",
    "q8",
    "q4",
    "ecq_sr",
    "ecq_sr:0.7",
    "ecq",
    "ecq:0.5",
    "eden1",
    "eden",
    "eden:1",
    "topk_sign",
    "auto",
    "auto:0.1",
    "auto:0.7:9000",
)
SCHEMA = schema((130, 530), (), (0, 3), (3,), (65_600,), (64, 3, 3), (77,))


def all_digests() -> dict[str, str]:
    """Codec -> SHA-256 of its payloads, their values and what they add up to."""
    found = {}
    for spec in SPECS:
        digest = hashlib.sha256()
        for trouble in ("bell", "heavy", "sparse", "outlier", "denormal", "all magnitudes"):
            tensors = tensors_of(SCHEMA, TROUBLE[trouble](70_001))
            rule = AutoRule.for_cohort(20) if spec == "auto" else None
            payload = encode(spec, tensors, SCHEMA, seed=2**32 - 5, rule=rule)
            # Beneath zstd, whose releases differ: the header and each block's strings.
            read = Payload(payload, SCHEMA)
            digest.update(repr([read.codecs, read._parameters]).encode())
            for values in decode(payload, SCHEMA).values():
                digest.update(values.tobytes())
            if zstandard.ZSTD_VERSION == (1, 5, 7):
                digest.update(payload)
        found[spec] = digest.hexdigest()
    found["accumulator"] = summed()
    found["downlink"] = chained()
    return found


def summed() -> str:
    """Of the mean of a few updates."""
    total = Accumulator(SCHEMA, weight_cap=999_983, updates_max=7)
    for number, spec in enumerate(("ecq_sr", "eden", "raw")):
        tensors = tensors_of(SCHEMA, TROUBLE["bell"](70_001 + number))
        total.add(encode(spec, tensors, SCHEMA, seed=number), 999_983 - number)
        total.add_tensors(tensors, 3 + number)
    return hashlib.sha256(b"".join(v.tobytes() for v in total.finish()[0].values())).hexdigest()


def chained() -> str:
    """Of the steps of a chain."""
    chain, digest = DownlinkChain(SCHEMA), hashlib.sha256()
    zeros = tensors_of(SCHEMA, np.zeros(1, np.float32))
    state = ChainState(0, zeros, zeros)
    for number in range(3):
        goal = tensors_of(SCHEMA, TROUBLE["heavy"](70_001 + number))
        payload, state = chain.advance(state, goal, seed=number)
        digest.update(b"".join(v.tobytes() for v in decode(payload, SCHEMA).values()))
        digest.update(b"".join(v.tobytes() for v in state.served.values()))
    return digest.hexdigest()


def main() -> dict[str, Any]:
    """What is printed."""
    return {
        "numpy": np.__version__,
        "zstandard": zstandard.__version__,
        "digests": all_digests(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(), indent=1) + "\n")
