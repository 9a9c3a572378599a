"""device_profiles: what devices are like, so that a fleet can be emulated before it exists.

Classes of devices (compute, memory, battery, network, how their days go) and mixes of them are
TOML files in which every number names its source; a loader reads them with errors that say what to
do. From a profile, a device's seed and a time follow its conditions, and from a profile and an
amount of work its time and energy: pure functions all of them, the same bits on any machine.
"""

from device_profiles.conditions import Conditions, conditions_at
from device_profiles.costs import (
    charging_w,
    training_energy_j,
    training_seconds,
    training_w_extra,
    transfer_energy_j,
    transfer_seconds,
)
from device_profiles.day import DayPattern
from device_profiles.mix import Mix, apportion, load_mix, mix_names
from device_profiles.profile import (
    DeviceProfile,
    ProfileError,
    class_names,
    class_sources,
    class_table,
    load_class,
)

__all__ = [
    "Conditions",
    "DayPattern",
    "DeviceProfile",
    "Mix",
    "ProfileError",
    "apportion",
    "charging_w",
    "class_names",
    "class_sources",
    "class_table",
    "conditions_at",
    "load_class",
    "load_mix",
    "mix_names",
    "training_energy_j",
    "training_seconds",
    "training_w_extra",
    "transfer_energy_j",
    "transfer_seconds",
]
