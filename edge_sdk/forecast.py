"""How long a device will probably stay available, from what it has lived itself.

The journal keeps the last few dozen stretches in which the gate was open. A forecast asks: on the
days before, when the gate was open at this time of day, how much longer did it stay open? It takes
a low quantile of the answers, since an invitation that is not finished costs more than one that is
not had. A stretch that still lasts has lasted at least until now on each of its days.

What is kept never leaves the device; what a check-in says is the forecast alone.

Pure: the time is unix seconds and comes in. A clock that is set makes old stretches say less, and
harms nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

DAY_S: Final = 86_400.0
DAYS_KEPT: Final = 14
SPELLS_MAX: Final = 96
# What a device that knows nothing of its owner's habits promises.
UNKNOWN_S: Final = 3_600.0
# Never further ahead than this.
HORIZON_S: Final = 86_400.0
# A third of the days that were like this one ended sooner.
QUANTILE: Final = 0.33
# From fewer days than this there is no telling.
DAYS_MIN: Final = 2
# How often the end of a stretch that lasts is written down; what a crash forgets is no more.
SAVE_EVERY_S: Final = 3_600.0
# A gate that opens again so soon, or a device that comes back from a reboot, was never away.
GAP_S: Final = 300.0


class Spell(msgspec.Struct, frozen=True, array_like=True):
    """A stretch in which the gate was open, unix seconds; `ended` False: it lasted at least so."""

    opened_s: float
    until_s: float
    ended: bool


class Spells(msgspec.Struct, frozen=True):
    """What the journal keeps, the oldest first; not more than `SPELLS_MAX`."""

    spells: tuple[Spell, ...] = ()


@dataclass(frozen=True, slots=True)
class Diary:
    """A device's stretches of availability, and since when the one lasts that has not ended.

    Frozen: each note returns the next one; when its `spells` are others, they are worth a write.
    """

    spells: tuple[Spell, ...] = ()
    opened_s: float | None = None
    saved_s: float = 0.0

    @classmethod
    def load(cls, kept: Spells) -> "Diary":
        """As the journal has it; a stretch that was open when the device stopped may go on."""
        return cls(kept.spells)

    @property
    def kept(self) -> Spells:
        """What to write to the journal."""
        return Spells(self.spells)

    def note(self, now_s: float, *, is_open: bool) -> "Diary":
        """The gate was looked at."""
        if is_open and self.opened_s is None:
            return self._opened(now_s)
        if not is_open and self.opened_s is not None:
            return _written(self, now_s, ended=True)
        if is_open and not 0.0 <= now_s - self.saved_s < SAVE_EVERY_S:
            return _written(self, now_s)
        return self

    def _opened(self, now_s: float) -> "Diary":
        last = self.spells[-1] if self.spells else None
        if last is not None:
            # Between a save and a crash the gate was open, as far as anybody knows.
            gap_s = GAP_S if last.ended else GAP_S + SAVE_EVERY_S
            if 0.0 <= now_s - last.until_s <= gap_s:
                return _written(Diary(self.spells[:-1], last.opened_s), now_s)
        return _written(replace(self, opened_s=now_s), now_s)

    def forecast_s(self, now_s: float) -> float:
        """How long the gate will probably stay open, in seconds, if it is open now."""
        left = sorted(_left_on_days_before(self.spells, self.opened_s, now_s))
        if len(left) < DAYS_MIN:
            return UNKNOWN_S
        return min(left[int(QUANTILE * len(left))], HORIZON_S)


def _written(diary: Diary, now_s: float, *, ended: bool = False) -> Diary:
    """The stretch that lasts, down to now; what is too old is forgotten."""
    if diary.opened_s is None:
        return diary
    opened_s = min(diary.opened_s, now_s)
    others = [spell for spell in diary.spells if spell.opened_s != diary.opened_s]
    recent = [each for each in others if abs(now_s - each.until_s) <= DAYS_KEPT * DAY_S]
    spells = (*recent, Spell(opened_s, now_s, ended))[-SPELLS_MAX:]
    return Diary(spells, None if ended else opened_s, now_s)


def _left_on_days_before(
    spells: Sequence[Spell], lasts_since_s: float | None, now_s: float
) -> Iterable[float]:
    """How much longer the gate stayed open, on each day when it was open at this time."""
    for day in range(1, DAYS_KEPT + 1):
        then_s = now_s - day * DAY_S
        for spell in spells:
            lasts = spell.opened_s == lasts_since_s
            until_s = now_s if lasts else spell.until_s
            if spell.opened_s <= then_s < until_s:
                yield max(until_s - then_s, HORIZON_S) if lasts else until_s - then_s
                break
