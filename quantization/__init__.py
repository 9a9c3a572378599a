"""quantization: an update becomes few bytes, and few bytes become an update again.

Codecs turn named float32 tensors into a self-describing payload whose size is bounded by the schema
alone, and back; `FixedPointSum` adds decoded updates so that the order of arrival cannot matter;
bundles carry a model down as a chain of such payloads. Nothing here knows of devices or rounds.
"""

from quantization.bundle import Bundle, Step, apply_bundle, pack_bundle, unpack_bundle
from quantization.codecs import CODEC_NAMES, feeds_back, resolve_downlink, resolve_uplink
from quantization.fixed_point import FixedPointSum
from quantization.payload import codec_of, decode, encode, payload_bytes_max
from quantization.secagg import SecaggInt

__all__ = [
    "CODEC_NAMES",
    "Bundle",
    "FixedPointSum",
    "SecaggInt",
    "Step",
    "apply_bundle",
    "codec_of",
    "decode",
    "encode",
    "feeds_back",
    "pack_bundle",
    "payload_bytes_max",
    "resolve_downlink",
    "resolve_uplink",
    "unpack_bundle",
]
