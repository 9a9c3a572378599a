"""Numbers of rounds and versions after a restore: far above all that may have been (ADR 0022).

A restored coordinator is in the past. Devices have seen rounds and hold versions that it does not
know of, and a number must not mean two things. A file allows a million rounds at most, so each
*epoch*, the time from one restore to the next, has a million numbers of its own, and begins above
all that any earlier one can have used.
"""

from dataclasses import dataclass
from typing import Final

import msgspec

from coordinator.store import Store, StoreError

ROUNDS_PER_EPOCH: Final = 1_000_000
# Numbers are at most 2**53 on the wire.
EPOCH_MAX: Final = 2**53 // ROUNDS_PER_EPOCH - 1
# 2026-01-01T00:00:00Z: epochs are counted in hours from there, so that a backup that is restored
# a second time begins another epoch than the first time.
_FIRST_S: Final = 1_767_225_600.0
_HOUR_S: Final = 3_600.0
_EPOCH: Final = "epoch"
_SKIPPED: Final = "rounds_skipped"


@dataclass(frozen=True, slots=True)
class Numbering:
    """How a state directory numbers its rounds and versions.

    `skipped` is how many numbers of rounds were never used.
    """

    epoch: int = 0
    skipped: int = 0

    @classmethod
    def read(cls, store: Store) -> "Numbering":
        """What the store says."""
        return cls(int(store.get(_EPOCH) or 0), int(store.get(_SKIPPED) or 0))

    @property
    def floor(self) -> int:
        """No number of this epoch is this low."""
        return self.epoch * ROUNDS_PER_EPOCH

    def next_round(self, last: int) -> int:
        """The number of the next round."""
        return max(last, self.floor) + 1

    def rounds_done(self, last: int) -> int:
        """How many rounds there have been."""
        return max(last, self.floor) - self.skipped

    def last_version(self, version: int) -> int:
        """The number that the next version follows."""
        return max(version, self.floor)


def begin_epoch(store: Store, now_s: float, epoch: int | None = None) -> Numbering:
    """Let a restored store go on above everything that may have been.

    Args:
        store: as it was when the backup was made.
        now_s: unix seconds.
        epoch: instead of the hours since 2026.

    Raises:
        StoreError: an epoch that is not later than the store's.
    """
    old = Numbering.read(store)
    if epoch is None:
        epoch = min(max(old.epoch + 1, int((now_s - _FIRST_S) // _HOUR_S)), EPOCH_MAX)
    if not old.epoch < epoch <= EPOCH_MAX:
        raise StoreError(f"epoch {epoch}: it has to be {old.epoch + 1} to {EPOCH_MAX}")
    last, unfinished = store.last_round(), store.unfinished_round()
    new = Numbering(epoch, epoch * ROUNDS_PER_EPOCH - old.rounds_done(last))
    with store.transaction():
        if unfinished is not None:
            # Its devices have long been in later rounds: it ends with what it has.
            opened, _stored = unfinished
            started_s = min(opened.opened_at_s, now_s)
            ends = msgspec.structs.replace(opened, opened_at_s=started_s, deadline_at_s=now_s)
            store.change_open_round(ends)
        store.put(_EPOCH, str(new.epoch).encode())
        store.put(_SKIPPED, str(new.skipped).encode())
    return new
