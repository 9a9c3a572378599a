"""The table machine: how both sans-IO machines of potluck take a step.

A machine is a frozen record with a `phase`, and one literal table that says, for each phase and
each type of event, which action runs and to which phases it may lead. The table is the machine:
drawings and tests are made from it. `advance` is all the code there is.

Rules:

1. A pair that the table lacks is an `IllegalStepError`; nothing has changed, because nothing can.
2. An action is a pure function `(record, event, now_s) -> (record, effects)`.
3. An action that leads to a phase which its row does not name is a bug, and is raised as one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from wire.effects import Effect
from wire.errors import LocalProtocolError

PhaseT_co = TypeVar("PhaseT_co", bound=Enum, covariant=True)


class Record(Protocol[PhaseT_co]):
    """What a machine remembers: anything frozen with a phase."""

    @property
    def phase(self) -> PhaseT_co:
        """Where the machine stands."""
        ...


RecordT = TypeVar("RecordT", bound=Record[Enum])
Step: TypeAlias = tuple[RecordT, tuple[Effect, ...]]


class IllegalStepError(LocalProtocolError):
    """The table has no row for this phase and event; the machine has not moved."""

    def __init__(self, phase: Enum, event: object) -> None:
        super().__init__(f"{type(event).__name__} is not a step from {phase.name}")
        self.phase = phase
        self.event = event


@dataclass(frozen=True, slots=True)
class Rule(Generic[RecordT]):
    """One row: the action, and every phase that it may lead to."""

    action: Callable[[RecordT, Any, float], Step[RecordT]]
    to: tuple[Enum, ...]


Table: TypeAlias = Mapping[Enum, Mapping[type, Rule[RecordT]]]


def advance(table: Table[RecordT], record: RecordT, event: object, now_s: float) -> Step[RecordT]:
    """Take one step.

    Args:
        table: the machine's literal table.
        record: where it stands.
        event: what happened.
        now_s: the time, in seconds; the machine has no clock of its own.

    Returns:
        The next record, and the effects that the driver must execute in order.

    Raises:
        IllegalStepError: the table has no such row.
        LocalProtocolError: the action left the row's phases.
    """
    rule = table.get(record.phase, {}).get(type(event))
    if rule is None:
        raise IllegalStepError(record.phase, event)
    after, effects = rule.action(record, event, now_s)
    if after.phase not in rule.to:
        raise LocalProtocolError(
            f"{type(event).__name__} led from {record.phase.name} to {after.phase.name}, "
            f"which the table does not allow"
        )
    return after, effects


def draw(table: Table[RecordT]) -> str:
    """The table as a Mermaid state diagram, for docs that cannot go stale."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for phase, rows in table.items():
        for event, rule in rows.items():
            for target in rule.to:
                arrows.setdefault((phase.name, target.name), []).append(event.__name__)
    lines = ["stateDiagram-v2"]
    lines += [
        f"    {source} --> {target}: {', '.join(sorted(set(events)))}"
        for (source, target), events in arrows.items()
        if source != target
    ]
    return "\n".join(lines)
