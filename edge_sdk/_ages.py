"""How old is what a device has kept, when its clock cannot be trusted.

Owners are promised that examples go after so many days. Boards without a battery wake up in 1970 or
on the day when their system was built, and learn the date minutes or weeks later; a wall clock that
jumps by a year must neither delete everything nor keep everything for a year longer. Two clocks are
there: the boot clock, which nobody sets, says what passed while a process runs; the wall clock is
the only one that says how long a device was off. So:

- A process's own time runs by the boot clock alone, from where the file says that time was.
- A wall clock that is ahead when a process starts says how long the device was off. Up to a day is
  believed at once. More is believed when the process has run for a day and it still says so;
  if it is set right meanwhile, nothing has happened.
- A wall clock that jumps later, forwards or backwards, is somebody setting it. It moves the names
  of all moments alike, and the age of nothing.
- A wall clock from before 2020 says nothing.

Pure: times come in as arguments, and what is to be changed goes out.
"""

from dataclasses import dataclass
from typing import Final

# Clocks that nobody has set stand at 1970, 1980 or 2000, or at the build of their system.
UNSET_BEFORE_S: Final = 1_577_836_800.0
# Below this two clocks agree: time servers slew, and a file is written to once a minute or so.
TOLERANCE_S: Final = 300.0
# A board that has a network learns the date within this time of its start.
SETTLE_S: Final = 3_600.0
# For so long a clock has to insist that a device was off for longer than that.
DOUBT_S: Final = 86_400.0


@dataclass(frozen=True)
class Correction:
    """What a look at the clocks changes.

    `off_s` is time that passed while the device was off: everything that earlier runs have kept is
    so much older. `renamed_s` moves all moments alike; no age changes. `doubted_s` is for how long
    a wall clock that is far ahead has been doubted.
    """

    off_s: float = 0.0
    renamed_s: float = 0.0
    doubted_s: float = 0.0


def look(
    believed_s: float, wall_s: float, *, running_s: float, ran_s: float, doubted_s: float
) -> Correction:
    """Compare the time that is believed with the wall clock.

    Args:
        believed_s: unix seconds, by the file and the boot clock since.
        wall_s: unix seconds by the wall clock.
        running_s: for how long this process has run.
        ran_s: of these, since the last look.
        doubted_s: as the last look returned it, in this run or in one before.
    """
    ahead_s = wall_s - believed_s
    if wall_s < UNSET_BEFORE_S or abs(ahead_s) <= TOLERANCE_S:
        return Correction()
    if believed_s < UNSET_BEFORE_S or (running_s > SETTLE_S and doubted_s <= 0.0):
        return Correction(renamed_s=ahead_s)
    if ahead_s < 0.0:
        return Correction()
    if ahead_s <= DOUBT_S or doubted_s + ran_s >= DOUBT_S:
        return Correction(off_s=ahead_s)
    # Above zero even in a first look: doubt that has begun is not a clock that was set later.
    return Correction(doubted_s=max(doubted_s + ran_s, 1e-3))
