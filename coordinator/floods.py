"""How much one device may say: a bucket of messages for each, refilled with time.

Chunks are bounded by what was announced; everything else costs the gateway a look into its store
or a write, whoever asks for it. A device that works needs a handful of messages a round.
"""

from typing import Final

from wire.errors import TooOftenError

# Rounds of a few milliseconds, as tests play them, stay far below.
MESSAGES_AT_ONCE: Final = 500.0
MESSAGES_PER_S: Final = 100.0
# A check-in of a new boot is written at once, but not for a device that boots all the time.
WRITE_EVERY_S: Final = 5.0
# Buckets that are full again need not be remembered.
_REMEMBERED_MAX: Final = 4_096


class Floods:
    """One bucket a device; memory grows with the devices that speak at a time."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}
        self._wrote_at_s: dict[str, float] = {}
        self._forget_at = _REMEMBERED_MAX

    def check(self, device: str, now_s: float) -> None:
        """Count a message.

        Raises:
            TooOftenError: the device has used up its allowance.
        """
        left, at_s = self._buckets.get(device, (MESSAGES_AT_ONCE, now_s))
        # A clock that was set back refills nothing; one that was set forward refills all.
        left = min(left + max(now_s - at_s, 0.0) * MESSAGES_PER_S, MESSAGES_AT_ONCE)
        if left < 1.0:
            self._buckets[device] = (left, now_s)
            raise TooOftenError(f"more than {MESSAGES_PER_S:.0f} messages a second")
        self._buckets[device] = (left - 1.0, now_s)
        if len(self._buckets) > self._forget_at:
            self._forget(now_s)
            self._forget_at = max(_REMEMBERED_MAX, 2 * len(self._buckets))

    def _forget(self, now_s: float) -> None:
        full_s = MESSAGES_AT_ONCE / MESSAGES_PER_S
        self._buckets = {
            device: (left, at_s)
            for device, (left, at_s) in self._buckets.items()
            if 0.0 <= now_s - at_s < full_s
        }

    def may_write(self, device: str, now_s: float) -> bool:
        """Whether a check-in of this device may cost a write of its own."""
        wrote_at_s = self._wrote_at_s.get(device)
        if wrote_at_s is not None and 0.0 <= now_s - wrote_at_s < WRITE_EVERY_S:
            return False
        if len(self._wrote_at_s) > _REMEMBERED_MAX:
            self._wrote_at_s.clear()
        self._wrote_at_s[device] = now_s
        return True
