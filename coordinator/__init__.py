"""coordinator: the gateway's side. It opens rounds around the devices that are really there.

`Coordinator` reads what devices say, `Conductor` drives the sans-IO rounds (`round`), `Store` keeps
what was acknowledged, `Gateway` is all of it as one process with a broker.
"""

from coordinator.backup import BackupSummary, make_backup, restore_backup
from coordinator.broker import BrokerMissingError, BrokerStartError, EmbeddedBroker
from coordinator.config import FederationConfig, load_config
from coordinator.gateway import EMBEDDED_PORT, Gateway, TaskModelError, broker_url
from coordinator.identity import STORE_FILE, init_state, load_identity, make_tokens, write_tokens
from coordinator.quarantine import pardon
from coordinator.reload import ask_to_reload
from coordinator.service import Coordinator
from coordinator.store import DiskFullError, Store, StoreError, UpdateRow

__all__ = [
    "EMBEDDED_PORT",
    "STORE_FILE",
    "BackupSummary",
    "BrokerMissingError",
    "BrokerStartError",
    "Coordinator",
    "DiskFullError",
    "EmbeddedBroker",
    "FederationConfig",
    "Gateway",
    "Store",
    "StoreError",
    "TaskModelError",
    "UpdateRow",
    "ask_to_reload",
    "broker_url",
    "init_state",
    "load_config",
    "load_identity",
    "make_backup",
    "make_tokens",
    "pardon",
    "restore_backup",
    "write_tokens",
]
