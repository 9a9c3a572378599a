"""What work and bytes cost in joules: an estimate by class, unless the app measures.

A device of a class of `device_profiles` counts training_w - idle_w for each second of work, and
joules per megabyte each way. An app with a meter says watts in `Conditions.power_w`; they replace
the first. A device of no known class counts as much as the hungriest class does: its budget is then
used up too early and not too late. Session tails of radios are not counted.
"""

from dataclasses import dataclass
from typing import Final

# The most of any class in `device_profiles/classes`: laptop-n100, sensor-lte.
UNKNOWN_TRAINING_W: Final = 19.0
UNKNOWN_UP_J_PER_MB: Final = 5.2
UNKNOWN_DOWN_J_PER_MB: Final = 1.2
_MB: Final = 1e6


@dataclass(frozen=True, slots=True)
class Energy:
    """Of one device: watts of work beyond idling, joules per 1e6 bytes each way."""

    training_w: float = UNKNOWN_TRAINING_W
    up_j_per_mb: float = UNKNOWN_UP_J_PER_MB
    down_j_per_mb: float = UNKNOWN_DOWN_J_PER_MB

    def radio_j(self, sent_bytes: int, received_bytes: int) -> float:
        """What these bytes cost, in joules."""
        return (self.up_j_per_mb * sent_bytes + self.down_j_per_mb * received_bytes) / _MB


def energy_of(device_class: str) -> Energy:
    """The estimate for a class of `device_profiles`; the highest for a name that is none."""
    from device_profiles import (  # noqa: PLC0415 - TOML, read when a device starts
        ProfileError,
        load_class,
        training_w_extra,
    )

    try:
        profile = load_class(device_class)
    except ProfileError:
        return Energy()
    return Energy(training_w_extra(profile), profile.up_j_per_mb, profile.down_j_per_mb)
