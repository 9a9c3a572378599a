"""What a device did, spent and waits for, read from its journal beside it or after it."""

import time
from dataclasses import dataclass
from pathlib import Path

from edge_sdk.journal import SqliteJournal, readable
from edge_sdk.policy import SECONDS_PER_DAY
from edge_sdk.signals import ForgetUpdate, VetoedRelease


@dataclass(frozen=True)
class DeviceStatus:
    """What a device did, spent and waits for, from its journal.

    `spent_bytes_today` are MQTT bytes both ways in the current UTC day, `spent_joules_today` the
    estimated energy beyond idling, `spent_training_s_today` seconds of training and evaluation.
    `waits` is why it begins nothing, a word of `edge_sdk.reasons`, as of its last look at its
    rules; empty when it may. `veto` is the last release that its app does not use, and why.
    `description` is the digest (hex) of the description that the model is from; empty when the task
    has a model of its own, or nothing has come yet.
    """

    device: str | None
    federation: str | None
    revoked: str | None
    opted_out: bool
    boot: int
    model_version: int
    held_version: int
    last_round: int
    sealed_round: int | None
    veto: VetoedRelease | None
    counted: int
    not_counted: dict[str, int]
    waits: str
    spent_bytes_today: int
    spent_joules_today: float
    spent_training_s_today: float
    history: tuple[ForgetUpdate, ...]
    description: str = ""


def read_status(state_dir: Path | str) -> DeviceStatus:
    """Read the journal of a device, running or not.

    Raises:
        JournalError: no device has run there, or its journal cannot be read.
    """
    journal = SqliteJournal(Path(state_dir), read_only=True)
    try:
        with readable(journal.path):
            return _status_in(journal)
    finally:
        journal.close()


def _status_in(journal: SqliteJournal) -> DeviceStatus:
    kept, history = journal.kept(), journal.history()
    spent = journal.spent(int(time.time() // SECONDS_PER_DAY))
    reasons: dict[str, int] = {}
    for line in history:
        if not line.counted:
            reasons[line.reason] = reasons.get(line.reason, 0) + 1
    return DeviceStatus(
        device=None if kept.enrolment is None else kept.enrolment.device,
        federation=None if kept.enrolment is None else kept.enrolment.federation,
        revoked=journal.revoked,
        opted_out=journal.opted_out,
        boot=kept.boot,
        model_version=kept.released_version,
        held_version=kept.held_version,
        last_round=kept.last_round,
        sealed_round=None if kept.sealed is None else kept.sealed.round,
        veto=kept.veto,
        counted=sum(line.counted for line in history),
        not_counted=reasons,
        waits=journal.waits,
        spent_bytes_today=spent.traffic_bytes,
        spent_joules_today=round(spent.joules, 3),
        spent_training_s_today=round(spent.training_s, 3),
        history=tuple(history),
        description=journal.description().hex(),
    )
