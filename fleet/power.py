"""A device's battery: drained by its owner, by idling, training and radio; filled by its charger.

It is a state, integrated from one look to the next; nothing happens to it in between that somebody
would have to be told of. What taking part costs is added up here too, on mains as well.
"""

from typing import Final

from device_profiles import DeviceProfile, charging_w, training_w_extra

# Batteries are never quite empty in floating point.
_EMPTY_FRACTION: Final = 1e-6


class Power:
    """Energy of one device.

    Args:
        profile: its class.
        battery_fraction: how full it is at the start; of no meaning on mains.

    Attributes:
        training_j: what training has cost so far, beyond idling.
    """

    def __init__(self, profile: DeviceProfile, battery_fraction: float = 1.0) -> None:
        self.training_j = 0.0
        self._profile = profile
        self._capacity_j = 3_600.0 * profile.battery_wh
        self._level_j = battery_fraction * self._capacity_j
        self._radio_j = 0.0
        self._looked_at_s = 0.0
        self._training = False

    @property
    def fraction(self) -> float:
        """How full the battery is, 0 to 1; mains is full."""
        return self._level_j / self._capacity_j if self._capacity_j else 1.0

    @property
    def empty(self) -> bool:
        """Whether nothing is left to run on."""
        return self.fraction <= _EMPTY_FRACTION

    def set_fraction(self, fraction: float) -> None:
        """Somebody changes the battery, or its owner has played a game."""
        self._level_j = fraction * self._capacity_j

    def look(self, now_s: float, *, charging: bool, owner_j: float, radio_j: float) -> None:
        """Integrate up to now.

        Args:
            now_s: the world's time.
            charging: whether it was on its charger since the last look; the charger pays for all.
            owner_j: what its owner, or idling, took since the last look.
            radio_j: what its radio has taken since the world began.
        """
        passed_s, self._looked_at_s = now_s - self._looked_at_s, now_s
        work_j, self._radio_j = radio_j - self._radio_j, radio_j
        if self._training:
            trained_j = passed_s * training_w_extra(self._profile)
            self.training_j += trained_j
            work_j += trained_j
        if charging:
            filled_j = self._level_j + passed_s * charging_w(self._profile)
            self._level_j = min(filled_j, self._capacity_j)
        else:
            self._level_j = max(self._level_j - owner_j - work_j, 0.0)

    def train(self, *, now: bool) -> None:
        """Training begins, or ends; look first."""
        self._training = now

    def seconds_left(self, owner_w: float) -> float | None:
        """When the battery is empty if things go on as they do; None on mains."""
        watts = owner_w + self._training * training_w_extra(self._profile)
        return self._level_j / watts if self._capacity_j and watts else None
