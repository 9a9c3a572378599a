"""Fuzz payloads: `make fuzz`.

Invariant: bytes under a right check end in a `RemoteProtocolError`, or in tensors that are finite
and shaped as the schema says; then each block alone gives the same values, and the sum of the
payload is the sum of its tensors. Under a wrong check they end in an error.
"""

import sys

import numpy as np

from quantization import Accumulator, Payload, decode
from quantization.payload import HEADER_BYTES
from tests.quantization.forge import schema, sealed
from tests.wire.make_payloads import payload_seeds
from wire import Schema
from wire.errors import NotFiniteError, RemoteProtocolError

SCHEMAS = (schema((64,)), schema((3, 4), (4,), (), (0, 2)), schema((70,), (300,)))


def check(data: bytes) -> None:
    """The invariant, of bytes behind one that picks the schema."""
    if not data:
        return
    made, payload = SCHEMAS[data[0] % len(SCHEMAS)], data[1:]
    prefix = bytes.fromhex(made.digest)[:4]
    payload = payload[:2] + prefix + payload[6:]
    if len(payload) >= HEADER_BYTES:
        of_payload(sealed(payload), made)
    if sealed(payload) != payload:
        try:
            decode(payload, made)
        except RemoteProtocolError:
            return
        raise AssertionError("a wrong check was taken")


def of_payload(payload: bytes, made: Schema) -> None:
    """The invariant, of a payload whose check is right."""
    try:
        whole = decode(payload, made)
    except RemoteProtocolError:
        return
    made.check(whole)
    read = Payload(payload, made)
    for number in reversed(range(len(read.blocks))):
        for part in read.block(number):
            values = np.zeros(part.piece.size, np.float32)
            values[slice(None) if part.positions is None else part.positions] = part.values
            flat = np.ravel(whole[made.tensors[part.piece.tensor].name])
            assert (values == flat[part.piece.start :][: part.piece.size]).all()
    one, other = (Accumulator(made, weight_cap=9, updates_max=9) for _ in range(2))
    try:
        one.add(payload, 7)
    except NotFiniteError:
        return
    other.add_tensors(whole, 7)
    assert all((one.finish()[0][k] == other.finish()[0][k]).all() for k in whole)


def seeds() -> list[bytes]:
    """What to start from."""
    return [bytes((which,)) + data for data in payload_seeds() for which in range(len(SCHEMAS))]


if __name__ == "__main__":
    from fuzz import engine

    engine.run(sys.argv, check, seeds())
