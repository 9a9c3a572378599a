"""What an idle device says in a day: its session and paho's pings with a clock that is not one.

A benchmark of minutes cannot see a day's events in their proportions: check-ins come further and
further apart, pings do not. So the day is counted here, from the very machine that devices run,
and what each event costs on the wire is measured; a day costs their products.
"""

from dataclasses import dataclass
from typing import Final

from edge_sdk import session as machine
from edge_sdk.signals import LEASE_S, GateOpened, LinkUp
from wire import Publish, WakeAt, Woke
from wire.link import KEEPALIVE_S
from wire.messages import Available, ComeBackAt

DAY_S: Final = 86_400.0
_CHUNK_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Day:
    """How often a device speaks: check-ins, when they are, and pings."""

    check_ins_at_s: tuple[float, ...]
    pings: int

    @property
    def check_ins(self) -> int:
        """The first comes with the connection."""
        return len(self.check_ins_at_s)


def idle_day(
    *,
    seconds: float = DAY_S,
    check_in_s: float = LEASE_S,
    forecast_s: float = 3_600.0,
    answered_s: float | None = None,
    keepalive_s: float = KEEPALIVE_S,
) -> Day:
    """A connected device whose gate is open, and for which there is no work.

    paho pings once in a keepalive, whatever else was said meanwhile.

    Args:
        seconds: how long.
        check_in_s: of its policy.
        forecast_s: how long it expects its gate to stay open.
        answered_s: after how long the coordinator tells it to come back; None: it says nothing.
        keepalive_s: of its link.
    """
    session = machine.start(
        schema_digest=bytes(32), boot=1, federation="idle", device="d", codecs=("raw",)
    )
    gate = GateOpened(forecast_s, 1.0, charging=True, metered=False, check_in_s=check_in_s)
    session, _ = machine.advance(session, gate, 0.0)
    session, effects = machine.advance(session, LinkUp(_CHUNK_BYTES), 0.0)
    now_s, said = 0.0, []
    while True:
        wake_at_s = seconds
        for effect in effects:
            if isinstance(effect, WakeAt) and effect.timer == machine.CHECK_IN:
                wake_at_s = effect.at_s
            if isinstance(effect, Publish) and isinstance(effect.message, Available):
                said.append(now_s)
        if answered_s is not None and said[-1:] == [now_s]:
            answer = ComeBackAt(session.check_in, answered_s, "run_over")
            session, effects = machine.advance(session, answer, now_s)
            wake_at_s = now_s + answered_s
        if wake_at_s >= seconds:
            return Day(tuple(said), int(seconds // keepalive_s))
        now_s = wake_at_s
        session, effects = machine.advance(session, Woke(machine.CHECK_IN), now_s)


def day_bytes(day: Day, *, connect: float, check_in: float, ping: float, reconnects: int) -> float:
    """Bytes of a day, from what each event costs.

    Args:
        day: how often each of them is.
        connect: a connection with its first check-in.
        check_in: a check-in and its acknowledgement, both ways.
        ping: and its answer.
        reconnects: connections of the day.
    """
    first = min(reconnects, 1)
    return reconnects * connect + (day.check_ins - first) * check_in + day.pings * ping
