"""What a machine asks of its driver. Effects are data; the driver executes them strictly in order.

The rule that buys reliability: a `Persist` precedes the `Publish` that reveals it. A crash is then
"stop after effect k", for some k, and never anything worse. Effects that only one side knows
(training, aggregation) stand beside that side's machine and derive from `Effect` too.
"""

import msgspec

from wire.messages import Message


class Effect:
    """Base of everything that a machine can ask for."""

    __slots__ = ()


class Publish(Effect, msgspec.Struct, frozen=True):
    """Send a message: to the coordinator from a device, to `device` from the coordinator."""

    message: Message
    device: str = ""


class Persist(Effect, msgspec.Struct, frozen=True):
    """Store a record durably, in one transaction, before the next effect runs."""

    record: msgspec.Struct


class WakeAt(Effect, msgspec.Struct, frozen=True):
    """Deliver `Woke(timer)` at `at_s`. A later request for the same timer replaces it."""

    timer: str
    at_s: float


class CancelWake(Effect, msgspec.Struct, frozen=True):
    """Forget a timer; unknown timers are no error."""

    timer: str


class Report(Effect, msgspec.Struct, frozen=True):
    """Tell people: a stable word for what happened, and a sentence."""

    what: str
    detail: str = ""
    device: str = ""


class Woke(msgspec.Struct, frozen=True):
    """The event that answers `WakeAt`."""

    timer: str
