"""What work costs a device in time and energy, from its profile.

Decimal units throughout: 1 GFLOP is 1e9 operations, 1 Mbit is 1e6 bits, 1 MB is 1e6 bytes.
"""

from typing import Final

from device_profiles.profile import DeviceProfile

# Estimate, the same for all classes: a charger fills an empty battery in two and a half hours.
CHARGE_S: Final = 9_000.0


def training_seconds(profile: DeviceProfile, flops: float) -> float:
    """Time to train, in seconds: flops / (training_gflops * 1e9).

    Args:
        profile: the device's class.
        flops: floating-point operations, forward and backward, over all examples and epochs.
    """
    return flops / (profile.training_gflops * 1e9)


def training_energy_j(profile: DeviceProfile, flops: float) -> float:
    """Energy that training adds, in joules: training_seconds * (training_w - idle_w).

    What the device would have drawn anyway is not counted: it is not what taking part costs.
    """
    return training_seconds(profile, flops) * training_w_extra(profile)


def training_w_extra(profile: DeviceProfile) -> float:
    """Power that training adds to idling, in watts: training_w - idle_w."""
    return profile.training_w - profile.idle_w


def charging_w(profile: DeviceProfile) -> float:
    """Power that a charger puts into the battery, in watts; 0 on mains."""
    return profile.battery_wh * 3_600.0 / CHARGE_S


def transfer_seconds(profile: DeviceProfile, bytes_up: int, bytes_down: int) -> float:
    """Time on the network, in seconds: 8 * bytes_up / up_bps + 8 * bytes_down / down_bps.

    The two directions are counted one after the other, as a device fetches before it sends; round
    trips and retries are not counted.
    """
    return 8e-6 * bytes_up / profile.up_mbps + 8e-6 * bytes_down / profile.down_mbps


def transfer_energy_j(
    profile: DeviceProfile, bytes_up: int, bytes_down: int, *, sessions: int = 1
) -> float:
    """Energy of the network, in joules: up_j_per_mb * MB + down_j_per_mb * MB + session tails.

    After the last byte a radio stays awake for a while, whatever was sent; `session_tail_j` counts
    that once for each of `sessions` (Huang et al., MobiSys 2012: on LTE it dominates small ones).
    """
    megabytes_j = profile.up_j_per_mb * bytes_up + profile.down_j_per_mb * bytes_down
    return megabytes_j / 1e6 + profile.session_tail_j * sessions
