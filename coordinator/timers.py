"""What a coordinator's timers are called that belong to no machine.

A round's own are `round.DEADLINE` and `buffer.FLIGHT_OVER`, an evaluation's is
`evaluating.EVALUATION_OVER`.
"""

from typing import Final

# Timer -> when it is due, unix seconds. One dict serves all who set timers: it is changed in place.
Timers = dict[str, float]

PLAN_AGAIN: Final = "plan_again"
# What could not be written for lack of space is tried again this often, in seconds.
DISK_AGAIN: Final = "disk_again"
DISK_AGAIN_S: Final = 5.0
LET_GO: Final = "let_go"
FLUSH: Final = "flush"
