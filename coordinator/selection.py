"""Whom to invite: pure functions of the leases, a public seed and how often each took part.

`random` is uniform among the eligible (the baseline of McMahan et al. 2017, algorithm 1, line 4).
`availability` prefers devices whose promised window outlasts the round's deadline, then those that
took part least, so that fast and ever-present devices do not own the model; chance breaks ties.
"""

import hashlib
from collections.abc import Mapping, Sequence

from coordinator.config import Selection
from coordinator.leases import Lease


def is_eligible(lease: Lease, rules: Selection) -> bool:
    """Whether a device's own report meets the federation's conditions."""
    return (
        (lease.charging or lease.battery_fraction >= rules.min_battery)
        and (lease.charging or not rules.require_charging)
        and (rules.allow_metered or not lease.metered)
    )


def _lot(seed: int, round_number: int, device: str) -> bytes:
    """A device's place in the draw: the same on any machine, whatever order leases came in."""
    return hashlib.sha256(f"{seed}/{round_number}/{device}".encode()).digest()


def select(
    leases: Sequence[Lease],
    rules: Selection,
    *,
    count: int,
    seed: int,
    round_number: int,
    deadline_at_s: float,
    taken_part: Mapping[str, int],
) -> list[Lease]:
    """Choose at most `count` of the eligible leases.

    Args:
        leases: those that run now.
        rules: policy and conditions.
        count: how many to invite.
        seed: the federation's public seed.
        round_number: enters the draw, so that every round draws anew.
        deadline_at_s: when the round ends, unix seconds.
        taken_part: device -> how many of its updates were counted so far.
    """
    eligible = [lease for lease in leases if is_eligible(lease, rules)]
    if rules.policy == "random":
        ranked = sorted(eligible, key=lambda lease: _lot(seed, round_number, lease.device))
    else:
        ranked = sorted(
            eligible,
            key=lambda lease: (
                lease.until_s < deadline_at_s,
                taken_part.get(lease.device, 0),
                _lot(seed, round_number, lease.device),
            ),
        )
    return ranked[:count]
