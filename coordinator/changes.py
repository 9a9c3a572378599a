"""A federation file that was changed: what may change, when, and what may not.

The state directory remembers the file that is in force. A changed one is compared with it, key by
key. Most keys may change, at a round's edge: an open round ends as it was opened. Some may not,
because devices or past rounds depend on them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from coordinator.config import FederationConfig
from coordinator.store import Store
from wire import PotluckError

_CONFIG: Final = "config"
# What emulated devices are like is no business of a coordinator.
_NOT_OURS: Final = frozenset({"fleet"})
_NEVER: Final = {
    "federation.name": "devices know it by that name; use another state directory",
}
_ONCE_SPENT: Final = dict.fromkeys(
    ("privacy.mode", "privacy.unit", "privacy.delta"),
    "privacy has been spent under it; write the old value back, or use another state directory",
)
_AT_A_START: Final = dict.fromkeys(
    ("broker.url", "broker.packet_bytes_max", "federation.task"),
    "it changes when the coordinator is stopped and run again",
)


class ConfigChangeError(PotluckError):
    """The file was changed where it may not be; the text says where, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key that means something else now."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        """For a report: `rounds.cohort: 20 -> 30`."""
        return f"{self.key}: {_toml(self.old)} -> {_toml(self.new)}"


def _toml(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def changes(old: FederationConfig, new: FederationConfig) -> tuple[Change, ...]:
    """Every key that differs, in the file's order; `[fleet]` is left out."""
    return tuple(_differences(old, new))


def _differences(old: FederationConfig, new: FederationConfig) -> Iterator[Change]:
    for table in FederationConfig.__struct_fields__:
        if table in _NOT_OURS:
            continue
        before, after = getattr(old, table), getattr(new, table)
        for key in type(after).__struct_fields__:
            values = getattr(before, key), getattr(after, key)
            if values[0] != values[1]:
                yield Change(f"{table}.{key}", *values)


def check_changes(
    old: FederationConfig, new: FederationConfig, *, spent: bool, running: bool
) -> tuple[Change, ...]:
    """What is about to change.

    Args:
        old: the file that is in force.
        new: the file that is to be.
        spent: whether a round has spent privacy.
        running: whether the coordinator runs, and has a broker and a task already.

    Raises:
        ConfigChangeError: a key that may not change.
    """
    found = changes(old, new)
    fixed = _NEVER | (_ONCE_SPENT if spent else {}) | (_AT_A_START if running else {})
    for change in found:
        if change.key in fixed:
            raise ConfigChangeError(f"{change}: not possible: {fixed[change.key]}")
    return found


def remembered(store: Store) -> FederationConfig | None:
    """The file that is in force, or None before the first start and after an older potluck."""
    kept = store.get(_CONFIG)
    if kept is None:
        return None
    try:
        return msgspec.json.decode(kept, type=FederationConfig)
    except msgspec.ValidationError:
        return None  # another potluck's, whose keys were others


def remember(store: Store, config: FederationConfig) -> None:
    """This file is in force."""
    store.put(_CONFIG, msgspec.json.encode(config))
