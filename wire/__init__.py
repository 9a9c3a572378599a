"""wire: what both sides agree on, and nothing else.

Messages and the frames around them, topics, transfers in chunks, the schema of a model, keys and
signatures, bounds, errors, the effects that machines ask for and the table that drives them, and
the one link to a broker. Floor 0: it imports nothing of potluck.
"""

from typing import TYPE_CHECKING, Any

from wire.chunks import Reassembly, chunk_bytes_for, chunk_count
from wire.effects import CancelWake, Effect, Persist, Publish, Report, WakeAt, Woke
from wire.errors import (
    BadCompressionError,
    BadSignatureError,
    DigestMismatchError,
    DuplicateError,
    LocalProtocolError,
    NotFiniteError,
    NotInvitedError,
    PotluckError,
    RemoteProtocolError,
    SchemaMismatchError,
    StaleRoundError,
    TokenError,
    TooLargeError,
    TrailingBytesError,
    TruncatedError,
    UnknownCodecError,
    UnknownSenderError,
    UnsupportedVersionError,
)
from wire.identity import coordinator_id, device_id, token_proof, update_id
from wire.machine import IllegalStepError, Rule, Table, advance, draw
from wire.manifest import Manifest, ManifestError, Schema, Tensors, TensorSpec, tensors_digest
from wire.messages import Message, Plan
from wire.signing import Crypto, Ed25519, SecretSource, Signer, SystemSecrets
from wire.topics import Address

if TYPE_CHECKING:
    from wire.artefact import Artefact, ArtefactInfo
    from wire.description import Description, read_description
    from wire.link import (
        BrokerAddress,
        BrokerAddressError,
        BrokerTrustError,
        MqttLink,
        TlsFiles,
        Traffic,
    )

__all__ = [
    "Address",
    "Artefact",
    "ArtefactInfo",
    "BadCompressionError",
    "BadSignatureError",
    "BrokerAddress",
    "BrokerAddressError",
    "BrokerTrustError",
    "CancelWake",
    "Crypto",
    "Description",
    "DigestMismatchError",
    "DuplicateError",
    "Ed25519",
    "Effect",
    "IllegalStepError",
    "LocalProtocolError",
    "Manifest",
    "ManifestError",
    "Message",
    "MqttLink",
    "NotFiniteError",
    "NotInvitedError",
    "Persist",
    "Plan",
    "PotluckError",
    "Publish",
    "Reassembly",
    "RemoteProtocolError",
    "Report",
    "Rule",
    "Schema",
    "SchemaMismatchError",
    "SecretSource",
    "Signer",
    "StaleRoundError",
    "SystemSecrets",
    "Table",
    "TensorSpec",
    "Tensors",
    "TlsFiles",
    "TokenError",
    "TooLargeError",
    "Traffic",
    "TrailingBytesError",
    "TruncatedError",
    "UnknownCodecError",
    "UnknownSenderError",
    "UnsupportedVersionError",
    "WakeAt",
    "Woke",
    "advance",
    "chunk_bytes_for",
    "chunk_count",
    "coordinator_id",
    "device_id",
    "draw",
    "read_description",
    "tensors_digest",
    "token_proof",
    "update_id",
]

# By the module that has them.
_LATER = {
    "Artefact": "artefact",
    "ArtefactInfo": "artefact",
    "BrokerAddress": "link",
    "BrokerAddressError": "link",
    "BrokerTrustError": "link",
    "Description": "description",
    "MqttLink": "link",
    "TlsFiles": "link",
    "Traffic": "link",
    "read_description": "description",
}


def __getattr__(name: str) -> Any:
    """Load paho-mqtt with the first thing that needs it: an app that only reads its model does not.

    And what only a device needs that trains a file, or has its model from the coordinator.

    Raises:
        AttributeError: no such name.
    """
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415 - as what it loads

    return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
