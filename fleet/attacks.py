"""What a device sends that means harm: whole and signed updates, made to spoil the model.

The attacker has trained as everybody has, and knows the codec: what it sends decodes, is of the
right shape and (but for `nan`) finite. Only rules that compare devices can tell it from honest
work.
"""

import zlib
from typing import Final

import numpy as np

from quantization import decode, encode
from quantization.payload import HEADER_BYTES
from wire import Schema, limits
from wire.errors import LocalProtocolError

ATTACKS: Final = frozenset({"sign_flip", "scale", "nan", "lie_samples"})
LIE_EXAMPLES: Final = 1_000_000
_CHECK_BYTES: Final = 4


def spoil(
    attack: str, payload: bytes, num_examples: int, schema: Schema, *, codec: str, amount: float
) -> tuple[bytes, int]:
    """What an attacker makes of its update.

    Args:
        attack: `sign_flip` sends the opposite, `amount` times as long; `scale` sends it `amount`
            times as long; `nan` sends what is no number; `lie_samples` sends the opposite, and says
            that it comes of a million examples.
        payload: of its honest update.
        num_examples: of its honest update.
        schema: of both.
        codec: as the round asked for.
        amount: over 0.

    Returns:
        The payload that is sent, and the number of examples that is said.
    """
    if attack == "nan":
        return _not_a_number(schema), num_examples
    factor = {"sign_flip": -amount, "scale": amount, "lie_samples": -1.0}.get(attack)
    if factor is None:
        raise LocalProtocolError(f"no attack {attack!r}")
    bound = limits.UPDATE_VALUE_ABS_MAX
    scaled = {
        name: np.clip(values * np.float32(factor), -bound, bound)
        for name, values in decode(payload, schema).items()
    }
    forged = encode(codec, scaled, schema, seed=zlib.crc32(payload))
    return forged, LIE_EXAMPLES if attack == "lie_samples" else num_examples


def _not_a_number(schema: Schema) -> bytes:
    """A payload that is right in every byte, and has NaN for values: no encoder makes one."""
    payload = bytearray(encode("raw", schema.zeros(), schema, seed=0))
    size = 4 * schema.parameters
    payload[len(payload) - size :] = np.full(schema.parameters, np.nan, "<f4").tobytes()
    head = bytes(payload[: HEADER_BYTES - _CHECK_BYTES])
    check = zlib.crc32(bytes(payload[HEADER_BYTES:]), zlib.crc32(head))
    payload[HEADER_BYTES - _CHECK_BYTES : HEADER_BYTES] = check.to_bytes(_CHECK_BYTES, "little")
    return bytes(payload)
