"""What a round's updates should come to, in plain NumPy: what checkers and tests compare with.

Written from the papers and docs/how-to/robust-aggregation.md, and on purpose with nothing of
`coordinator.aggregation` but the names: all updates in one float64 matrix, in canonical order, no
streaming, no fixed point, no strips.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordinator.signals import AggregationPlan
from quantization import decode
from wire import Schema

Floats = NDArray[np.float64]

COHORT_ALONE: Final = 20
NORMS_KEPT: Final = 100


def matrix_of(payloads: Sequence[bytes], schema: Schema) -> Floats:
    """Decoded updates: float64[updates, parameters]."""
    return np.array(
        [
            np.concatenate([np.ravel(values) for values in decode(payload, schema).values()])
            for payload in payloads
        ],
        np.float64,
    )


def aggregate(
    plan: AggregationPlan,
    updates: Floats,
    weights: Sequence[int],
    past_norms: Sequence[float] = (),
    factors: Sequence[float] | None = None,
) -> Floats:
    """The change of the model that a plan's rule makes, before any step of a server's optimiser."""
    w = np.array(weights, np.float64)
    if plan.weight_ratio_max:
        w = np.minimum(w, max(1.0, np.floor(plan.weight_ratio_max * np.median(w))))
    w = w * (1.0 if factors is None else np.array(factors))
    count = len(updates)
    match plan.robust:
        case "none":
            return np.average(updates, axis=0, weights=w)
        case "norm_clip":
            norms = np.linalg.norm(updates, axis=1)
            return np.average(
                updates * clips(norms, past_norms, plan.clip_quantile)[:, None], axis=0, weights=w
            )
        case "median":
            return np.asarray(np.median(updates, axis=0), np.float64)
        case "trimmed_mean":
            cut = min(int(plan.attackers_max * count), (count - 1) // 2)
            kept = np.sort(updates, axis=0)[cut : count - cut]
            return np.asarray(np.mean(kept, axis=0), np.float64)
        case "multi_krum":
            norms = np.linalg.norm(updates, axis=1)
            clipped = updates * clips(norms, past_norms, plan.clip_quantile)[:, None]
            chosen = krum(clipped, plan.attackers_max)
            return np.asarray(np.average(clipped[chosen], axis=0, weights=w[chosen]), np.float64)
        case "geometric_median":
            return geometric_median(updates, w)
    raise ValueError(plan.robust)


def clips(norms: Floats, past_norms: Sequence[float], quantile: float) -> Floats:
    """What is left of each update under the adaptive clip."""
    own = [norm for norm in norms.tolist() if norm > 0.0]
    if not own:
        return np.ones_like(norms)
    missing = max(0, COHORT_ALONE - len(own))
    known = sorted([*own, *(list(past_norms)[-missing:] if missing else [])])
    clip = known[int(np.floor(quantile * (len(known) - 1) + 1e-9))]
    return np.asarray(np.minimum(1.0, clip / np.maximum(norms, 1e-300)), np.float64)


def krum(updates: Floats, attackers_max: float) -> list[int]:
    """The rows that multi-Krum averages."""
    count = len(updates)
    bad = max(0, min(int(attackers_max * count), (count - 3) // 2))
    if count - bad - 2 < 1:
        return list(range(count))
    scores = []
    for row in range(count):
        apart = np.sort(np.square(np.delete(updates, row, axis=0) - updates[row]).sum(axis=1))
        scores.append(float(apart[: count - bad - 2].sum()))
    return sorted(sorted(range(count), key=lambda row: scores[row])[: count - bad])


def geometric_median(updates: Floats, weights: Floats, rounds: int = 1_000) -> Floats:
    """Weiszfeld's algorithm on the vectors themselves, from 0."""
    z: Floats = np.zeros(updates.shape[1])
    floor = max(1e-6 * float(np.median(np.linalg.norm(updates, axis=1))), 1e-300)
    for _ in range(rounds):
        beta = weights / np.maximum(np.linalg.norm(updates - z, axis=1), floor)
        after: Floats = np.asarray(np.average(updates, axis=0, weights=beta), np.float64)
        if np.array_equal(after, z):
            break
        z = after
    return z
