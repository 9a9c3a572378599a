"""Error feedback: what a biased codec leaves out of one update goes into the next.

e' = (x + e) - q(x + e), with q's output sent (Seide et al. 2014; Karimireddy et al. 2019, algorithm
1). It makes a contraction such as `topk_sign` converge, on a device that takes part often. A
residual that has waited many rounds is about a model that is gone: then a codec without memory is
the better choice.
"""

import numpy as np

from quantization.codecs import CODECS, keeps_residual
from quantization.payload import Payload, decode, encode
from wire import Schema, Tensors
from wire.errors import LocalProtocolError, SchemaMismatchError


def encode_with_feedback(
    spec: str, tensors: Tensors, residual: Tensors, schema: Schema, *, seed: int
) -> tuple[bytes, Tensors]:
    """Encode an update and what the last one left out.

    Args:
        spec: a codec that keeps a residual; see `encode` and `keeps_residual`.
        tensors: float32 by name, the schema's.
        residual: what the call before returned; empty for none.
        schema: of both.
        seed: see `encode`.

    Returns:
        The payload, and the new residual: of those tensors whose codec is biased.

    Raises:
        LocalProtocolError: this codec's error must not be fed back; it would grow.
        SchemaMismatchError, NotFiniteError: see `encode`.
    """
    if not keeps_residual(spec):
        raise LocalProtocolError(f"codec {spec}: its error grows when it is fed back")
    schema.check(tensors)
    if residual:
        if not residual.keys() <= tensors.keys():
            raise SchemaMismatchError("the residual is another model's")
        schema.check({**tensors, **residual})
        with np.errstate(over="ignore"):
            tensors = {
                name: values + residual[name] if name in residual else values
                for name, values in tensors.items()
            }
    payload = encode(spec, tensors, schema, seed=seed, feedback=True)
    sent = decode(payload, schema)
    codecs = zip(schema.tensors, Payload(payload, schema).codecs, strict=True)
    return payload, {
        each.name: tensors[each.name] - sent[each.name]
        for each, codec in codecs
        if codec is not None and not CODECS[codec].unbiased
    }
