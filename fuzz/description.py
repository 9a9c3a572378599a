"""Fuzz descriptions: `make fuzz`.

Invariant: bytes end in a `RemoteProtocolError`, or in a manifest that is described by the same
bytes again.
"""

import sys

from tests.wire.make_descriptions import manifests, refused_descriptions
from wire import Description, read_description
from wire.errors import RemoteProtocolError


def check(data: bytes) -> None:
    """The invariant."""
    try:
        manifest = read_description(data)
    except RemoteProtocolError:
        return
    assert Description(manifest).payload == data


def seeds() -> list[bytes]:
    """What to start from."""
    good = [Description(manifest).payload for manifest in manifests().values()]
    return [*good, *refused_descriptions().values()]


if __name__ == "__main__":
    from fuzz import engine

    engine.run(sys.argv, check, seeds())
