"""quantization: an update becomes few bytes, and few bytes become an update again.

Codecs, chains of pure stages, turn named float32 tensors into a self-describing payload whose size
is bounded by the schema alone, and back; `auto` chooses among them. An `Accumulator` adds payloads
as they come so that the order of arrival cannot matter; bundles carry a model down as a chain of
such payloads. Nothing here knows of devices or rounds.

Modules are loaded when a name of theirs is first used: an app that imports the SDK pays for codecs
when it trains.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantization.accumulator import SHARE_UNITS, Accumulator, Portion
    from quantization.auto import AutoRule, PayloadBudgetError, narrowed
    from quantization.bundle import Bundle, Step, apply_bundle, pack_bundle, unpack_bundle
    from quantization.codecs import (
        AUTO,
        CODEC_NAMES,
        check_spec,
        feeds_back,
        keeps_residual,
        name_of,
    )
    from quantization.container import (
        Container,
        check_container_spec,
        open_container,
        pack_container,
    )
    from quantization.downlink import CatchUp, ChainState, DownlinkChain, resolve_downlink
    from quantization.feedback import encode_with_feedback
    from quantization.payload import (
        Payload,
        PieceValues,
        codec_of,
        decode,
        encode,
        payload_bytes_max,
    )
    from quantization.secagg import SecaggInt

__all__ = [
    "AUTO",
    "CODEC_NAMES",
    "SHARE_UNITS",
    "Accumulator",
    "AutoRule",
    "Bundle",
    "CatchUp",
    "ChainState",
    "Container",
    "DownlinkChain",
    "Payload",
    "PayloadBudgetError",
    "PieceValues",
    "Portion",
    "SecaggInt",
    "Step",
    "apply_bundle",
    "check_container_spec",
    "check_spec",
    "codec_of",
    "decode",
    "encode",
    "encode_with_feedback",
    "feeds_back",
    "keeps_residual",
    "name_of",
    "narrowed",
    "open_container",
    "pack_bundle",
    "pack_container",
    "payload_bytes_max",
    "resolve_downlink",
    "unpack_bundle",
]

_HOMES = {
    "SHARE_UNITS": "accumulator",
    "Accumulator": "accumulator",
    "Portion": "accumulator",
    "AutoRule": "auto",
    "PayloadBudgetError": "auto",
    "narrowed": "auto",
    "Bundle": "bundle",
    "Step": "bundle",
    "apply_bundle": "bundle",
    "pack_bundle": "bundle",
    "unpack_bundle": "bundle",
    "AUTO": "codecs",
    "CODEC_NAMES": "codecs",
    "check_spec": "codecs",
    "feeds_back": "codecs",
    "keeps_residual": "codecs",
    "name_of": "codecs",
    "Container": "container",
    "check_container_spec": "container",
    "open_container": "container",
    "pack_container": "container",
    "CatchUp": "downlink",
    "ChainState": "downlink",
    "DownlinkChain": "downlink",
    "resolve_downlink": "downlink",
    "encode_with_feedback": "feedback",
    "Payload": "payload",
    "PieceValues": "payload",
    "codec_of": "payload",
    "decode": "payload",
    "encode": "payload",
    "payload_bytes_max": "payload",
    "SecaggInt": "secagg",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
