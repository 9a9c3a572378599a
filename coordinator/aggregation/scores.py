"""How far each update is from what the others say: its length, and where it points.

Two figures, neither of them a proof. An update that is several times as long as the cohort's median
was scaled up, or its device has diverged. An update that points away from what all others make
together was turned round, or its device has other data than the others. So a score is no verdict:
it is a strike or a part of one, or takes a part back, and `coordinator.quarantine` adds them up.

Directions are a sequential test (Wald 1945): is a device's work turned round, or is it at worst
something else than the others'? The cohort's cosines are taken for normal, with a robust middle m
and spread s; turned round they would be about -m, and of data that have nothing in common with the
others' about 0. A cosine c then speaks for "turned round" with a log-likelihood ratio of
-m (c + m / 2) / s**2; that, less a margin, and at most one strike of an update. Where devices
agree, a few updates decide. Where they do not (other data on each; a model that has learnt what
there is to learn), m / s**2 is small, and nobody is judged.

What was trained on an older base points elsewhere for that reason alone: in an asynchronous round
stale updates are not judged by their direction.

Directions are compared on a few blocks. Which, follows from the round's seed and from the change
that came of it: while a device trains nobody can know.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregation.rules import COHORT_ALONE, Common, Member
from coordinator.aggregation.spool import Spool
from quantization import SHARE_UNITS
from quantization.blocks import blocks_of

BLOCKS_LOOKED_AT: Final = 3
NORM_RATIO_MAX: Final = 6.0
STRIKE_MAX: Final = 1.0
# What every update takes back, so that a device that only has odd data does not add up: with it
# none of 1,200 honest devices came to three strikes in 60 rounds (docs/adr/0015).
MARGIN: Final = 0.2
_MEMBERS_MIN: Final = 5
# Of so many cosines the variance is doubled, of twice as many it is a quarter more.
_FEW: Final = 10
_TO_SIGMA: Final = 1.4826  # of the median absolute deviation of a normal distribution

TOO_LONG: Final = "too_long"
TURNED_AWAY: Final = "turned_away"


@dataclass(frozen=True, slots=True)
class Score:
    """What is remarkable of an update.

    Attributes:
        norm_ratio: its norm over the cohort's median; 0 when that is 0.
        cosine: with the change of all others, None when either is 0 or the update is stale.
        strike: -1 to 1; what is over 0 speaks against the device.
        why: `too_long` or `turned_away` when it does, else empty.
    """

    update_id: bytes
    device: str
    norm_ratio: float
    cosine: float | None
    strike: float
    why: str


def score(
    seed: int,
    members: Sequence[Member],
    common: Common,
    spool: Spool,
    past_norms: Sequence[float],
) -> tuple[Score, ...]:
    """Score each member of a round, in their order."""
    norms = [member.norm for member in members]
    missing = max(0, COHORT_ALONE - len(norms))
    usual = float(np.median([*past_norms[-missing:], *norms] if missing else norms))
    looked_at = _blocks(seed, common, spool)
    fresh = np.array([member.claimed.share == SHARE_UNITS for member in members])
    cosines = np.where(fresh, _cosines(looked_at, common, spool), np.nan)
    middle, doubt = _doubt(cosines, sum(blocks_of(spool.schema)[at].size for at in looked_at))
    scores = []
    for member, cosine in zip(members, cosines.tolist(), strict=True):
        ratio = member.norm / usual if usual else 0.0
        known = None if math.isnan(cosine) else cosine
        against = 0.0 if known is None else -doubt * (known + middle / 2.0)
        strike = max(-STRIKE_MAX, min(STRIKE_MAX, against - MARGIN))
        why = TURNED_AWAY if strike > 0.0 else ""
        if ratio > NORM_RATIO_MAX:
            strike, why = STRIKE_MAX, TOO_LONG
        scores.append(Score(member.update_id, member.device, ratio, known, strike, why))
    return tuple(scores)


def _doubt(cosines: NDArray[np.float64], coordinates: int) -> tuple[float, float]:
    """The middle m of the cohort's cosines, and how much one says: m / s**2; 0 for nothing.

    s**2 is at least what it is among vectors of so many coordinates that have nothing in common. Of
    few cosines it is often estimated too small, and an honest device that differs would pay for it.
    """
    known = cosines[~np.isnan(cosines)]
    if len(known) < _MEMBERS_MIN:
        return 0.0, 0.0
    middle = max(float(np.median(known)), 0.0)
    spread = _TO_SIGMA * float(np.median(np.abs(known - middle)))
    few = 1.0 + (_FEW / len(known)) ** 2
    return middle, middle / (few * spread**2 + 1.0 / coordinates)


def _cosines(blocks: Sequence[int], common: Common, spool: Spool) -> NDArray[np.float64]:
    """Of each update with the change less its own part in it; NaN where there is none."""
    dots, squares = np.zeros(len(spool)), np.zeros(len(spool))
    length = 0.0
    for number in blocks:
        block = blocks_of(spool.schema)[number]
        change = common.change[block.start : block.start + block.size]
        length += float(np.sum(np.square(change, dtype=np.float64)))
    for row in range(len(spool)):
        dots[row], squares[row] = spool.along(row, blocks, common.change)
    own = np.array(common.influence)
    others = np.maximum(length - 2.0 * own * dots + own**2 * squares, 0.0)
    lengths = np.sqrt(squares * others)
    towards = dots - own * squares
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.where(lengths > 0.0, towards / lengths, np.nan)


def _blocks(seed: int, common: Common, spool: Spool) -> list[int]:
    count = len(blocks_of(spool.schema))
    if count <= BLOCKS_LOOKED_AT:
        return list(range(count))
    key = (seed << 32) | zlib.crc32(common.change.tobytes())
    words = np.asarray(np.random.Philox(key=key).random_raw(count), np.uint64)
    return sorted(int(at) for at in np.argsort(words, kind="stable")[:BLOCKS_LOOKED_AT])
