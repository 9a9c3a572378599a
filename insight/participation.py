"""Who takes part, by class of device: is a class asked and counted as often as it is there?

A model is that of the devices that train it. A class that is there and does not count is a bias
that no accuracy over all shows.
"""

from collections.abc import Mapping

import msgspec


class ClassShare(msgspec.Struct, frozen=True):
    """One class over a run; shares are of all classes and sum to 1 over them.

    `there` is its share of the eligible devices that were there when rounds opened, each round
    weighing as much as updates were counted in it. `ratio` is `counted` by `there`: 1 is its due,
    0.5 half of it; None for a class that was never there.
    """

    device_class: str
    there: float
    invited: float
    counted: float
    ratio: float | None
    invitations: int
    updates: int


def participation_by_class(
    there: Mapping[str, float], invited: Mapping[str, int], counted: Mapping[str, int]
) -> tuple[ClassShare, ...]:
    """The share of each class of those there, invited and counted, in order of name.

    Args:
        there: class -> its weight among those that could have been invited.
        invited: class -> invitations.
        counted: class -> counted updates.
    """
    names = sorted(set(there) | set(invited) | set(counted))
    sums = [sum(each.values()) for each in (there, invited, counted)]
    found = []
    for name in names:
        shares = [
            each.get(name, 0) / whole if whole else 0.0
            for each, whole in zip((there, invited, counted), sums, strict=True)
        ]
        present, asked, took_part = shares
        found.append(
            ClassShare(
                device_class=name,
                there=present,
                invited=asked,
                counted=took_part,
                ratio=took_part / present if present > 0.0 else None,
                invitations=invited.get(name, 0),
                updates=counted.get(name, 0),
            )
        )
    return tuple(found)
