"""What a round's updates have in common: one change, whoever lies among them.

A rule is a triple. `init` makes what is kept while the round is open; `accumulate` takes an update
as it arrives, and says how long it is; `finish` makes the change of those that count. All memory
of a rule is what `init` made and what `finish` needs while it runs. `mean` and `norm_clip` add up
as updates come, in integers that can be taken back; the others look at the spool in the end.

No rule may depend on the order of arrival: members are in the order of their ids.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from coordinator.aggregation.columns import median, trimmed_mean
from coordinator.aggregation.distances import gram, krum_choice, weiszfeld
from coordinator.aggregation.spool import Flat, Spool
from coordinator.signals import AggregationPlan
from quantization import SHARE_UNITS, Accumulator, Portion
from wire import Schema, Tensors

# A cohort of fewer is judged beside the latest norms of rounds before.
COHORT_ALONE: Final = 20
NORMS_KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class Member:
    """An update that is in the round.

    Args:
        update_id: its place in the canonical order.
        device: whose it is.
        norm: L2, as decoded.
        claimed: its weight and its share, as it was taken.
        portion: how much of it is in the sum now.
    """

    update_id: bytes
    device: str
    norm: float
    claimed: Portion
    portion: Portion


@dataclass(frozen=True, slots=True)
class Common:
    """What a rule made of a round.

    Attributes:
        change: float32, the flattened model's.
        influence: of each member: the factor of its values in `change`; 0 where a rule has none.
        portions: what is in the sum of each member by now.
    """

    change: Flat
    influence: tuple[float, ...]
    portions: tuple[Portion, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """What `finish` may look at beside the sum: members and their spool, in the same order."""

    plan: AggregationPlan
    members: tuple[Member, ...]
    spool: Spool
    past_norms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """(init, accumulate, finish); see the module."""

    init: Callable[[Schema, int, int], Accumulator]
    accumulate: Callable[[Accumulator, bytes, int, int], float]
    finish: Callable[[Accumulator, Round], Common]
    streams: bool


def flattened(schema: Schema, tensors: Tensors) -> Flat:
    """Tensor after tensor, as the blocks of the schema count."""
    parts = [np.ravel(tensors[spec.name]) for spec in schema.tensors]
    return np.concatenate([np.empty(0, np.float32), *parts])


# -- weights and norms -----------------------------------------------------------------------------


def fair_weights(weights: Sequence[int], ratio_max: float) -> tuple[int, ...]:
    """Weights of which none is above `ratio_max` times their median; 0 for no bound.

    Nobody can check how many examples a device has. What it says it has may count for a few times
    what is usual, and not for the whole round.
    """
    if ratio_max <= 0.0 or not weights:
        return tuple(weights)
    cap = max(1, math.floor(ratio_max * float(np.median(weights))))
    return tuple(min(weight, cap) for weight in weights)


def clip_norm(norms: Sequence[float], past: Sequence[float], quantile: float) -> float:
    """The norm at which updates are clipped: a quantile of the round's own (Andrew et al. 2021).

    A small cohort's quantile is chance: up to `COHORT_ALONE` the latest of the rounds before stand
    in. Updates that say nothing have no say; with none that says anything nothing is clipped.

    Andrew et al. 2021, Differentially Private Learning with Adaptive Clipping, follow the quantile
    by gradient steps, since a private round may not look at norms. Here it may.
    """
    own = [norm for norm in norms if norm > 0.0]
    if not own:
        return math.inf
    missing = max(0, COHORT_ALONE - len(own))
    known = [*past[-missing:], *own] if missing else own
    return float(np.quantile(np.array(known, np.float64), quantile, method="lower"))


def damp_of(norm: float, clip: float) -> int:
    """What is left of an update of this norm, in units of 2**-20, rounded down: never above it."""
    return SHARE_UNITS if norm <= clip else math.floor(clip / norm * SHARE_UNITS)


# -- rules that add up -----------------------------------------------------------------------------


def _init(schema: Schema, weight_cap: int, updates_max: int) -> Accumulator:
    return Accumulator(schema, weight_cap=weight_cap, updates_max=updates_max)


def _add(total: Accumulator, payload: bytes, weight: int, share: int) -> float:
    return total.add(payload, weight, share=share)


def _measure(total: Accumulator, payload: bytes, _weight: int, _share: int) -> float:
    return total.measure(payload)


def _mean(total: Accumulator, of: Round) -> Common:
    """The weighted mean (McMahan et al. 2017, algorithm 1)."""
    return _of_sum(total, tuple(member.portion for member in of.members))


def _norm_clip(total: Accumulator, of: Round) -> Common:
    """The weighted mean of updates, none longer than the clip nor heavier than is fair.

    All of them are in the sum; those that are too long or too heavy are exchanged in it.
    """
    portions = []
    for row, (wanted, damp) in enumerate(zip(_fair(of), _damps(of), strict=True)):
        member, portion = of.members[row], replace(wanted, damp=damp)
        if portion != member.portion:
            total.exchange(of.spool.payload(row), member.portion, portion)
        portions.append(portion)
    return _of_sum(total, tuple(portions))


def _fair(of: Round) -> list[Portion]:
    weights = [member.claimed.weight for member in of.members]
    fair = fair_weights(weights, of.plan.weight_ratio_max)
    return [
        replace(member.claimed, weight=weight)
        for member, weight in zip(of.members, fair, strict=True)
    ]


def _of_sum(total: Accumulator, portions: tuple[Portion, ...]) -> Common:
    mean, _weight = total.finish()
    mass = sum(portion.weight * portion.share for portion in portions)
    influence = tuple(
        portion.weight * portion.share * portion.damp / (mass * SHARE_UNITS) for portion in portions
    )
    return Common(flattened(total.schema, mean), influence, portions)


# -- rules that look at the spool ------------------------------------------------------------------


def _nothing(of: Round) -> tuple[float, ...]:
    return (0.0,) * len(of.members)


def _portions(of: Round) -> tuple[Portion, ...]:
    return tuple(member.portion for member in of.members)


def _median(total: Accumulator, of: Round) -> Common:
    change = median(of.spool, total.schema.parameters)
    return Common(change, _nothing(of), _portions(of))


def _trimmed_mean(total: Accumulator, of: Round) -> Common:
    change = trimmed_mean(of.spool, total.schema.parameters, of.plan.attackers_max)
    return Common(change, _nothing(of), _portions(of))


def _multi_krum(total: Accumulator, of: Round) -> Common:
    """The weighted mean of those that others are near to (Blanchard et al. 2017, multi-Krum).

    Updates are clipped first, as `norm_clip` does. Among updates of different lengths Krum prefers
    the short ones, which say least: that cost 2.4 points on the digits without any attacker.
    """
    damps = _damps(of)
    left = np.array(damps, np.float64) / SHARE_UNITS
    chosen = krum_choice(gram(of.spool) * left[:, None] * left[None, :], of.plan.attackers_max)
    masses = [
        portion.weight * portion.share if row in chosen else 0
        for row, portion in enumerate(_fair(of))
    ]
    return _weighted(total, of, [mass / max(masses) for mass in masses], damps)


def _geometric_median(total: Accumulator, of: Round) -> Common:
    """The point whose summed distance to all is least (Pillutla et al. 2022, algorithm 2)."""
    masses = [float(portion.weight * portion.share) for portion in _fair(of)]
    weights = weiszfeld(gram(of.spool), masses).tolist()
    return _weighted(total, of, weights, [SHARE_UNITS] * len(weights))


def _damps(of: Round) -> list[int]:
    norms = [member.norm for member in of.members]
    clip = clip_norm(norms, of.past_norms, of.plan.clip_quantile)
    return [damp_of(norm, clip) for norm in norms]


def _weighted(
    total: Accumulator, of: Round, weights: Sequence[float], damps: Sequence[int]
) -> Common:
    """A weighted mean in one pass; weights become integers, 2**20 for the largest."""
    largest = max(weights)
    shares = [round(weight / largest * SHARE_UNITS) for weight in weights]
    fresh = Accumulator(total.schema, weight_cap=1, updates_max=len(of.members))
    for row, (share, damp) in enumerate(zip(shares, damps, strict=True)):
        if share:
            fresh.add(of.spool.payload(row), 1, share=share, damp=damp)
    mean, _weight = fresh.finish()
    parts = zip(shares, damps, strict=True)
    influence = tuple(share * damp / (sum(shares) * SHARE_UNITS) for share, damp in parts)
    return Common(flattened(total.schema, mean), influence, _portions(of))


RULES: Final = {
    "none": Rule(_init, _add, _mean, streams=True),
    "norm_clip": Rule(_init, _add, _norm_clip, streams=True),
    "median": Rule(_init, _measure, _median, streams=False),
    "trimmed_mean": Rule(_init, _measure, _trimmed_mean, streams=False),
    "multi_krum": Rule(_init, _measure, _multi_krum, streams=False),
    "geometric_median": Rule(_init, _measure, _geometric_median, streams=False),
}
