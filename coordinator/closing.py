"""What becomes of a round's updates: each is added or refused, and together they are a version.

What decides is in the round's machine; this executes its `Validate`, its `Commit` and the records
that settle updates, and says afterwards what is worth knowing of a version.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from coordinator import buffer
from coordinator.course import Course
from coordinator.current import CurrentRound
from coordinator.evaluating import EVALUATION_OVER, Evaluations
from coordinator.evaluation import Evaluator, evaluate, pooled_metrics
from coordinator.headroom import Headroom
from coordinator.history import History
from coordinator.leases import Leases
from coordinator.models import Models
from coordinator.quarantine import QUARANTINED, Quarantine
from coordinator.retention import Keeper
from coordinator.signals import (
    Accepted,
    Commit,
    Committed,
    Rejected,
    RoundAbandoned,
    UpdateSettled,
    Validate,
)
from coordinator.store import Store
from coordinator.timers import LET_GO, PLAN_AGAIN, Timers
from wire import RemoteProtocolError, Report

ABANDONED_PAUSE_S: Final = 2.0
LET_GO_AGAIN_S: Final = 1.0


class Closing:
    """Closes the rounds of one federation.

    Args:
        course: how far the federation has come.
        current: the round that is open.
        history: what rounds leave of their devices.
        store: where everything durable is.
        models: the model through its versions.
        leases: which devices are there.
        quarantine: which devices are kept out.
        evaluations: measures versions with devices.
        evaluator: what `task.test()` returned, or None.
        headroom: whether there is room on the disk.
        timers: set for what is to be done next.
        observe: told every `Report`.
        count_incident: told of every update that was rejected.
        needed_versions: whose whole tensors stay when there is a new one.
    """

    def __init__(
        self,
        *,
        course: Course,
        current: CurrentRound,
        history: History,
        store: Store,
        models: Models,
        leases: Leases,
        quarantine: Quarantine,
        evaluations: Evaluations,
        evaluator: Evaluator | None,
        headroom: Headroom,
        timers: Timers,
        observe: Callable[[Report], None],
        count_incident: Callable[[str, RemoteProtocolError], None],
        needed_versions: Callable[[], frozenset[int]],
    ) -> None:
        self._course = course
        self._current = current
        self._history = history
        self._store = store
        self._models = models
        self._leases = leases
        self._quarantine = quarantine
        self._evaluations = evaluations
        self._evaluator = evaluator
        self._headroom = headroom
        self._timers = timers
        self._observe = observe
        self._count_incident = count_incident
        self._needed_versions = needed_versions
        self._keeper = Keeper(store)

    # -- one update --------------------------------------------------------------------------

    def validate(self, effect: Validate, now_s: float) -> Accepted | Rejected:
        """Add an update to the sum, or say what is wrong with it."""
        current = self._current
        aggregation = current.aggregation
        if self._quarantine.is_out(effect.device, now_s):
            return Rejected(effect.update_id, QUARANTINED)
        payload = current.payload(effect.update_id)
        try:
            aggregation.accept(
                effect.update_id,
                effect.device,
                effect.weight,
                payload,
                factor=buffer.staleness_factor(effect.staleness),
            )
        except RemoteProtocolError as error:
            self._count_incident(effect.device, error)
            current.offences[effect.update_id] = error.reason
            return Rejected(effect.update_id, error.reason)
        return Accepted(effect.update_id)

    def settle(self, settled: UpdateSettled) -> None:
        """Decide an update that does not count; if it was no update, its device is struck."""
        offence = self._current.offences.get(settled.update_id)
        device = self._current.state.owners[settled.update_id]
        out = False
        with self._store.transaction():
            self._store.settle(settled)
            if offence is not None:
                out = self._quarantine.strike(
                    device, settled.round, settled.settled_at_s, reason=offence
                )
        # Only now: without room on the disk the same is tried again.
        self._current.offences.pop(settled.update_id, None)
        if out:
            self._keep_out(device, offence or "")

    def _keep_out(self, device: str, why: str) -> None:
        self._leases.end(device)
        self._observe(Report("quarantined", why, device))

    # -- all of them -------------------------------------------------------------------------

    def commit(self, effect: Commit, now_s: float) -> Committed:
        """Make a version of the sum; it is on disk, with all settlements, when this returns.

        Raises:
            DiskFullError: there is no room for it; nothing has changed.
        """
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            outcome = self._current.aggregation.finish(effect.accepted, read=self._current.payload)
            commit, state = self._models.next_version(
                outcome.change, effect.round, effect.accepted, outcome.memory
            )
        with self._store.transaction():  # an operator may release a version at this very moment
            self._store.commit_round(commit, now_s, keep=self._needed_versions())
            kept_out = self._quarantine.score(outcome.scores, effect.round, now_s)
            changed = self._history.note_round(now_s)
        self._models.adopt(commit, state)
        self._current.summed()
        trained = [self._current.state.owners[key] for key in effect.accepted]
        self._history.adopt_round(changed, trained)
        for device, why in kept_out:
            self._keep_out(device, why)
        self._after_commit(effect.round, now_s)
        # One that is under way goes on; only the last model is worth ending it early.
        last = self._course.is_last(effect.round)
        if self._evaluations.due(commit.version) and (last or not self._evaluations.is_open):
            self._evaluations.begin(effect.round, commit.version, commit.digest, trained, now_s)
            self._timers[EVALUATION_OVER] = self._evaluations.over_at_s
        return Committed(commit.version, commit.digest)

    def abandon(self, record: RoundAbandoned) -> None:
        """Write down that a round ended without a version."""
        with self._store.transaction():
            self._store.abandon_round(record)
            changed = self._history.note_round(record.closed_at_s)
        self._history.adopt_round(changed, counted=[])
        self._round_over(record.round)
        self._timers[PLAN_AGAIN] = record.closed_at_s + ABANDONED_PAUSE_S

    # -- what is told of it ------------------------------------------------------------------

    def _after_commit(self, round_number: int, now_s: float) -> None:
        """What is told of a version, none of which it depends on."""
        if self._evaluator is not None:
            try:
                metrics = evaluate(self._evaluator, self._models, self._course.config.plan(0))
            except Exception as error:  # noqa: BLE001 - user code; the version is committed already
                self._observe(Report("evaluation_failed", f"{type(error).__name__}: {error}"))
                metrics = {}
            with self._headroom.or_not():
                self._store.note_round(round_number, metrics, "test")
        else:
            with self._headroom.or_not():
                self._note_holdouts(round_number)
        self._round_over(round_number)
        self._timers[PLAN_AGAIN] = now_s

    def _note_holdouts(self, round_number: int) -> None:
        """Devices measured their base on their hold-outs: that is the round before theirs.

        If that one was abandoned the base is an older version, whose figures these are.
        """
        invited_to = {row.round for row in self._store.updates(round_number) if row.counted}
        for number in sorted(invited_to):
            pooled = pooled_metrics(self._store.update_metrics(number))
            opened = self._store.round_opened(number)
            base = None if opened is None else opened.base_version
            if number > 1:
                self._store.note_round(number - 1, pooled, version=base)
            elif base is not None:
                self._store.note_version(base, pooled)

    def _round_over(self, round_number: int) -> None:
        self._course.round_over(round_number, self._current.declines)
        self._timers[LET_GO] = 0.0

    def let_go(self, now_s: float) -> None:
        """Let go of a little that is old, and of more in a while if there is more."""
        with self._headroom.or_not():
            if self._keeper.step(self._course.config.retention, self._models.version, now_s):
                self._timers[LET_GO] = now_s + LET_GO_AGAIN_S
