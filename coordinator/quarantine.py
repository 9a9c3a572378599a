"""Strikes: from single updates that stand out to a device that is kept out, and back again.

One odd update proves nothing. Strikes add up over a device's updates, and clean ones take them
back: what an honest device collects by chance it loses again, what an attacker sends adds up. At
`strikes_max` the device is quarantined for `quarantine_s`: it is not selected, and what it sends
does not count. Then it is let back on probation, where one whole strike is enough; each quarantine
after the first lasts twice as long as the one before. An operator can pardon.

Updates are judged by what most of them say, so most of them have to be right. No more than a share
of all devices, `[aggregation] attackers_max`, is ever kept out at once: rather does an attacker
stay than a federation lock itself out.

`judge` and `let_back` decide, and are pure. `Quarantine` writes down what they decide: each change
of a standing with its line in the audit trail, in one transaction. It keeps nothing in memory, so
that a restart forgets nothing and a pardon by another process is heard at once.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from coordinator.aggregation import Score
from coordinator.store import AuditRow, DiskFullError, Standing, Store

QUARANTINED: Final = "quarantined"
PARDONED: Final = "pardoned"
STRIKE: Final = "strike"
LET_BACK: Final = "let_back"

# Clean updates that a device owes when it is let back.
PROBATION: Final = 3
# A quarantine is doubled at most so often.
_DOUBLINGS_MAX: Final = 6
# What is smaller is not worth a line: honest work is off by as much all the time.
_WORTH_A_LINE: Final = 0.5
# A quarantined device looks in this often, should somebody pardon it meanwhile.
COME_BACK_S: Final = 3_600.0


def judge(
    standing: Standing, strike: float, *, strikes_max: int, quarantine_s: float, now_s: float
) -> Standing:
    """A standing after one more update.

    Args:
        standing: before; not quarantined.
        strike: -1 to 1, see `Score.strike`.
        strikes_max: how many are too many; 0 for no bound.
        quarantine_s: how long the first quarantine lasts.
        now_s: unix seconds.
    """
    strikes = max(0.0, standing.strikes + strike)
    on_probation = standing.probation > 0
    if strikes_max and (strikes >= strikes_max or (on_probation and strikes >= 1.0)):
        doublings = min(standing.quarantines, _DOUBLINGS_MAX)
        until_s = now_s + quarantine_s * 2**doublings
        return Standing(0.0, until_s, 0, standing.quarantines + 1)
    probation = standing.probation - 1 if on_probation and strike <= 0.0 else standing.probation
    return replace(standing, strikes=strikes, probation=probation)


def let_back(standing: Standing, now_s: float) -> Standing:
    """A standing whose quarantine is over, on probation; any other as it is."""
    until_s = standing.quarantined_until
    if until_s is None or now_s < until_s:
        return standing
    return replace(standing, quarantined_until=None, probation=PROBATION)


class Quarantine:
    """The standing of every device, on disk.

    Args:
        store: where it is.
        strikes_max: how many are too many; 0 lets strikes be counted and nobody be kept out.
        quarantine_s: how long the first quarantine lasts.
        share_max: of all enrolled devices that may be kept out at once.
    """

    def __init__(
        self, store: Store, *, strikes_max: int, quarantine_s: float, share_max: float
    ) -> None:
        self._store = store
        self.reconfigure(strikes_max=strikes_max, quarantine_s=quarantine_s, share_max=share_max)

    def reconfigure(self, *, strikes_max: int, quarantine_s: float, share_max: float) -> None:
        """Judge by other numbers from now on; whoever is out stays so until its time is over."""
        self._share_max = share_max
        self._strikes_max = strikes_max
        self._quarantine_s = quarantine_s

    def until_s(self, device: str, now_s: float) -> float | None:
        """Until when a device is kept out, None when it is not; one whose time is over is let back.

        No longer than the longest quarantine from now: a clock may have been set while nobody ran.
        """
        standing = self._store.standing(device)
        if standing.quarantined_until is None:
            return None
        after = let_back(standing, now_s)
        if after.quarantined_until is None:
            line = AuditRow(device, 0, LET_BACK, "on_probation", None, after.strikes, now_s)
            # Without room it is let back all the same, and that is written the next time.
            with contextlib.suppress(DiskFullError):
                self._store.set_standing(device, after, (line,))
            return None
        longest_s = self._quarantine_s * 2**_DOUBLINGS_MAX
        return min(after.quarantined_until, now_s + longest_s)

    def is_out(self, device: str, now_s: float) -> bool:
        """Whether a device is kept out."""
        return self.until_s(device, now_s) is not None

    def strike(
        self,
        device: str,
        round_number: int,
        now_s: float,
        *,
        reason: str,
        strike: float = 1.0,
        score: float | None = None,
    ) -> bool:
        """Take one update into account; returns whether the device is quarantined for it.

        Args:
            device: whose.
            round_number: of which round.
            now_s: unix seconds.
            reason: a word for the trail.
            strike: -1 to 1, see `Score.strike`.
            score: the figure that it follows from.
        """
        standing = self._store.standing(device)
        if standing.quarantined_until is not None:
            return False
        after = judge(
            standing,
            strike,
            strikes_max=self._strikes_max,
            quarantine_s=self._quarantine_s,
            now_s=now_s,
        )
        if after == standing:
            return False
        out = after.quarantined_until is not None
        if out and not self._has_room():
            return False
        lines = []
        if strike >= _WORTH_A_LINE or out:
            strikes = max(0.0, standing.strikes + strike)
            lines.append(AuditRow(device, round_number, STRIKE, reason, score, strikes, now_s))
        if out:
            lines.append(
                AuditRow(device, round_number, QUARANTINED, reason, score, after.strikes, now_s)
            )
        self._store.set_standing(device, after, tuple(lines))
        return out

    def _has_room(self) -> bool:
        enrolled, out = self._store.count_devices()
        return out + 1 <= self._share_max * enrolled

    def score(
        self, scores: Iterable[Score], round_number: int, now_s: float
    ) -> list[tuple[str, str]]:
        """Take a committed round into account; returns who is quarantined for it, and why."""
        out = []
        for score in scores:
            figure = score.norm_ratio if score.why == "too_long" else score.cosine
            if self.strike(
                score.device,
                round_number,
                now_s,
                reason=score.why or "clean",
                strike=score.strike,
                score=figure,
            ):
                out.append((score.device, score.why))
        return out

    def on_clock_step(self, by_s: float) -> None:
        """Somebody has set the clock."""
        self._store.move_quarantines(by_s)


def pardon(store: Store, device: str, now_s: float) -> Standing:
    """Forget what speaks against a device, and say so in the trail; returns how it stood."""
    before = store.standing(device)
    line = AuditRow(device, 0, PARDONED, "by_operator", None, before.strikes, now_s)
    store.set_standing(device, Standing(), (line,))
    return before
