"""Fuzz bundles: `make fuzz`.

Invariant: bytes end in a `RemoteProtocolError`, or in a bundle that packs to the same bytes again;
applying it then ends in a `RemoteProtocolError` or in finite tensors of the schema.
"""

import sys

from quantization import apply_bundle, pack_bundle, unpack_bundle
from tests.wire.make_payloads import SHARED, bundle_seeds
from wire.errors import RemoteProtocolError


def check(data: bytes) -> None:
    """The invariant."""
    try:
        bundle = unpack_bundle(data)
    except RemoteProtocolError:
        return
    assert pack_bundle(bundle.from_version, bundle.steps) == data
    try:
        SHARED.check(apply_bundle(bundle, SHARED, SHARED.zeros()))
    except RemoteProtocolError:
        return


def seeds() -> list[bytes]:
    """What to start from."""
    return bundle_seeds()


if __name__ == "__main__":
    from fuzz import engine

    engine.run(sys.argv, check, seeds())
