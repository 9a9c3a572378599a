"""Would the nemesis notice? Classic mistakes are made on purpose, and it has to find each."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from coordinator import buffer
from coordinator import round as rounds
from coordinator.aggregation import RoundAggregation
from coordinator.closing import Closing
from coordinator.conductor import Conductor
from coordinator.current import CurrentRound
from coordinator.evaluating import Evaluations
from coordinator.headroom import Headroom
from coordinator.intake import Intake
from coordinator.releases import Releases
from coordinator.service import Coordinator
from coordinator.signals import Commit, Committed, Resume, UpdateArrived
from coordinator.store import DiskFullError, Store
from edge_sdk import Policy, _gatekeeper, releasing, session
from edge_sdk.driver import DeviceDriver
from edge_sdk.journal import MemoryJournal
from edge_sdk.policy import judge
from edge_sdk.signals import NOTHING, LinkUp, Spent, Trained, VetoedRelease
from fleet.device_disk import DeviceDisk
from fleet.nemesis import Mode, try_seed
from quantization import Accumulator, Portion
from wire import Persist, Publish, Rule, WakeAt, Woke, chunks, identity
from wire.messages import Invite, Receipt, Release, Settled

SEEDS_MAX = 200
Patch = pytest.MonkeyPatch


def change_row(patch: Patch, module: Any, phase: Any, event: type, action: Any) -> None:
    """Exchange one action of a machine's table."""
    rows = dict(module.TABLE[phase])
    rows[event] = Rule(action, rows[event].to)
    patch.setattr(module, "TABLE", MappingProxyType({**module.TABLE, phase: rows}))


def receipt_before_commit(patch: Patch) -> None:
    right = rounds._arrived

    def wrong(state: Any, event: Any, now_s: float) -> Any:
        after, effects = right(state, event, now_s)
        return after, tuple(sorted(effects, key=lambda e: not isinstance(e, Publish)))

    for phase in (rounds.Phase.INVITING, rounds.Phase.COLLECTING):
        change_row(patch, rounds, phase, UpdateArrived, wrong)


def settlement_before_the_transaction(patch: Patch) -> None:
    right = Conductor._execute

    def wrong(self: Any, effect: Any, now_s: float) -> None:
        for update_id in effect.accepted if isinstance(effect, Commit) else ():
            message = Settled(update_id, counted=True, reason="counted")
            self._publish(message, self.round.owners[update_id])
        right(self, effect, now_s)

    patch.setattr(Conductor, "_execute", wrong)


def duplicate_counted(patch: Patch) -> None:
    right = Accumulator.add

    def wrong(self: Any, payload: bytes, weight: int, **share: int) -> float:
        norm = right(self, payload, weight, **share)
        if self.count < self.updates_max:
            right(self, payload, weight, **share)
        return norm

    patch.setattr(Accumulator, "add", wrong)


def weight_forgotten(patch: Patch) -> None:
    right = RoundAggregation.accept
    seen = iter(range(10**9))
    patch.setattr(
        RoundAggregation,
        "accept",
        lambda self, update_id, device, weight, payload, **how: right(
            self, update_id, device, 1 + next(seen) % weight, payload, **how
        ),
    )


def clip_forgotten(patch: Patch) -> None:
    patch.setattr(Accumulator, "exchange", lambda *_: None)


def clipped_twice_what_was_in_the_sum_already(patch: Patch) -> None:
    right = Accumulator.exchange

    def wrong(self: Any, payload: bytes, portion: Portion, other: Portion) -> None:
        right(self, payload, portion, other)
        right(self, payload, portion, other)

    patch.setattr(Accumulator, "exchange", wrong)


def clip_forgets_the_rounds_before(patch: Patch) -> None:
    patch.setattr(Store, "strategy_memory", lambda *_: b"")


def stale_round_accepted(patch: Patch) -> None:
    patch.setattr(Intake, "_why_late", lambda *_: None)
    patch.setattr(Intake, "_why_not", lambda *_: None)
    right = Intake._describe

    def wrong(self: Any, device: str, message: Any, now_s: float) -> Any:
        stored = right(self, device, message, now_s)
        opened = self._rounds.round.opened
        number = stored.round if opened is None else opened.round
        return msgspec.structs.replace(stored, round=number)

    patch.setattr(Intake, "_describe", wrong)


def settled_twice(patch: Patch) -> None:
    right = Store.open_round

    def wrong(self: Any, opened: Any) -> None:
        right(self, opened)
        self._db.execute(
            "UPDATE updates SET counted = 0, reason = 'again' WHERE round = ?", (opened.round - 1,)
        )

    patch.setattr(Store, "open_round", wrong)


def counted_after_a_restart_but_not_summed(patch: Patch) -> None:
    right = Closing.validate

    def wrong(self: Any, effect: Any, now_s: float) -> Any:
        if effect.update_id in self._current.payloads:
            return right(self, effect, now_s)
        sums = self._current.aggregation._total._sums.copy()
        found = right(self, effect, now_s)
        self._current.aggregation._total._sums[:] = sums
        return found

    patch.setattr(Closing, "validate", wrong)


def spool_emptied_too_early(patch: Patch) -> None:
    right = Store.store_update

    def wrong(self: Any, update: Any, payload: bytes) -> None:
        right(self, update, payload)
        self._db.execute("DELETE FROM spool WHERE update_id = ?", (update.update_id,))

    patch.setattr(Store, "store_update", wrong)


def quorum_ignored(patch: Patch) -> None:
    right = rounds._woke

    def wrong(state: Any, event: Any, now_s: float) -> Any:
        opened = state.opened
        lax = replace(state, opened=msgspec.structs.replace(opened, needed=1))
        after, effects = right(lax, event, now_s)
        return replace(after, opened=opened), effects

    for phase in (rounds.Phase.INVITING, rounds.Phase.COLLECTING):
        for event in list(rounds.TABLE[phase]):
            if event.__name__ == "Woke":
                change_row(patch, rounds, phase, event, wrong)


def deadline_forgotten_after_a_restart(patch: Patch) -> None:
    right = rounds._resume

    def wrong(state: Any, event: Resume, now_s: float) -> Any:
        after, effects = right(state, event, now_s)
        return after, tuple(e for e in effects if not isinstance(e, WakeAt))

    change_row(patch, rounds, rounds.Phase.PLANNED, Resume, wrong)


def timer_lost_on_reconnect(patch: Patch) -> None:
    right = session._link_up_offer

    def wrong(state: Any, event: LinkUp, now_s: float) -> Any:
        after, effects = right(state, event, now_s)
        return after, tuple(e for e in effects if not isinstance(e, WakeAt))

    for phase in (session.Phase.SEALED, session.Phase.UPLOADING):
        change_row(patch, session, phase, LinkUp, wrong)


def update_forgotten_at_its_receipt(patch: Patch) -> None:
    right = session._receipt

    def wrong(state: Any, event: Receipt, now_s: float) -> Any:
        if state.sealed is None or state.sealed.update_id != event.update_id:
            return right(state, event, now_s)
        settled = Settled(event.update_id, counted=True, reason="counted")
        return session._settled(state, settled, now_s)

    rows = dict(session.TABLE[session.Phase.UPLOADING])
    rows[Receipt] = Rule(wrong, (session.Phase.SETTLED, session.Phase.UPLOADING))
    table = {**session.TABLE, session.Phase.UPLOADING: rows}
    patch.setattr(session, "TABLE", MappingProxyType(table))


def seal_not_persisted(patch: Patch) -> None:
    right = session._trained

    def wrong(state: Any, event: Trained, now_s: float) -> Any:
        after, effects = right(state, event, now_s)
        return after, tuple(e for e in effects if not isinstance(e, Persist))

    change_row(patch, session, session.Phase.TRAINING, Trained, wrong)


def unreleased_model_used(patch: Patch) -> None:
    right = DeviceDriver._finish_download

    def wrong(self: Any, download: Any, now_s: float) -> None:
        right(self, download, now_s)
        self.released = self._model(self.session.held_version)

    patch.setattr(DeviceDriver, "_finish_download", wrong)


def chunks_of_another_update_mixed_in(patch: Patch) -> None:
    stray = [b"another's"]
    right = chunks.Reassembly.payload

    def wrong(self: Any) -> bytes:
        payload = right(self)
        stray.append(payload)
        return payload if len(stray) % 5 else stray[-2]

    patch.setattr(chunks.Reassembly, "payload", wrong)


def rounds_never_closed_by_the_last_invitee(patch: Patch) -> None:
    right = rounds._close_if_over

    def wrong(state: Any, now_s: float, *, deadline: bool = False) -> Any:
        return (state, ()) if deadline else right(state, now_s, deadline=deadline)

    patch.setattr(rounds, "_close_if_over", wrong)


def released_before_it_is_on_disk(patch: Patch) -> None:
    right = Releases.promote

    def wrong(self: Any, version: int, alias: str, *, actor: Any, now_s: float) -> Any:
        digest = self._registry.version(version).digest
        self._tell_everybody(Release(version, digest, alias))
        return right(self, version, alias, actor=actor, now_s=now_s) if version % 2 else None

    patch.setattr(Releases, "promote", wrong)


def invited_without_having_spoken(patch: Patch) -> None:
    right = rounds.invite

    def wrong(opened: Any, device: str, check_in: int, left_s: float) -> Publish:
        publish = right(opened, device, check_in + 1, left_s)
        assert isinstance(publish.message, Invite)
        return publish

    patch.setattr(rounds, "invite", wrong)


def commit_told_but_not_written(patch: Patch) -> None:
    right = Store.commit_round
    turns = iter(range(10**9))

    def wrong(self: Any, record: Any, now_s: float, *, keep: Any) -> None:
        if next(turns) % 2 == 0:
            right(self, record, now_s, keep=keep)

    patch.setattr(Store, "commit_round", wrong)


def committed_without_settling(patch: Patch) -> None:
    def wrong(state: Any, _event: Committed, _now_s: float) -> Any:
        return replace(state, phase=rounds.Phase.COMMITTED), ()

    change_row(patch, rounds, rounds.Phase.CLOSING, Committed, wrong)
    patch.setattr(Intake, "tell", lambda *_: None)


def update_ids_that_are_not_the_rounds(patch: Patch) -> None:
    patch.setattr(identity, "update_id", lambda *_: b"\x00" * 16)
    patch.setattr(session, "update_id_of", lambda *_: b"\x00" * 16)


def budget_forgotten_on_reboot(patch: Patch) -> None:
    right = MemoryJournal.begin_boot

    def wrong(self: Any) -> Any:
        self._spent.clear()
        return right(self)

    patch.setattr(MemoryJournal, "begin_boot", wrong)


def budget_of_a_day_that_a_clock_step_ends(patch: Patch) -> None:
    right = MemoryJournal.spend

    def wrong(self: Any, day: int, more: Spent) -> Spent:
        self._spent = {day: self._spent.get(day, NOTHING)}
        return right(self, day, more)

    patch.setattr(MemoryJournal, "spend", wrong)


def training_goes_on_with_its_budget_spent(patch: Patch) -> None:
    right = judge

    def wrong(policy: Policy, *args: Any, **named: Any) -> Any:
        return right(replace(policy, training_s_per_day_max=0.0), *args, **named)

    patch.setattr(_gatekeeper, "judge", wrong)


def timers_left_where_they_were_when_the_clock_was_set(patch: Patch) -> None:
    patch.setattr(Coordinator, "on_clock_step", lambda *_: None)


def damaged_models_taken_for_good(patch: Patch) -> None:
    patch.setattr(DeviceDriver, "_holds", lambda *_: True)


def full_disk_ends_the_process(patch: Patch) -> None:
    def wrong(self: Any, _event: Any) -> None:
        self._postponed.clear()
        raise DiskFullError("full")

    patch.setattr(Headroom, "or_not", lambda _: contextlib.nullcontext())
    patch.setattr(Headroom, "has_room", lambda *_: True)
    patch.setattr(Conductor, "_postpone", wrong)


def update_known_that_found_no_room(patch: Patch) -> None:
    right = Conductor.take

    def wrong(self: Any, update: Any, payload: bytes, now_s: float) -> None:
        try:
            right(self, update, payload, now_s)
        except DiskFullError:
            arrived = UpdateArrived(update)
            self.current.state, _ = rounds.advance(self.round, arrived, now_s)
            self._publish(Receipt(update.update_id), update.device)

    patch.setattr(Headroom, "has_room", lambda *_: True)
    patch.setattr(Conductor, "take", wrong)


def commit_forgotten_that_found_no_room(patch: Patch) -> None:
    patch.setattr(Headroom, "has_room", lambda *_: True)
    patch.setattr(Conductor, "_go_on", lambda *_: None)


def staleness_forgotten(patch: Patch) -> None:
    patch.setattr(buffer, "staleness_factor", lambda _staleness: 1.0)


def anything_stale_taken(patch: Patch) -> None:
    patch.setattr(CurrentRound, "why_late", lambda *_: None)


def counted_in_the_round_that_asked_for_it(patch: Patch) -> None:
    right = Store.store_update

    def wrong(self: Any, update: Any, payload: bytes) -> None:
        right(self, msgspec.structs.replace(update, collected_in=update.round), payload)

    patch.setattr(Store, "store_update", wrong)


def invitations_not_written_down(patch: Patch) -> None:
    patch.setattr(Store, "note_invited", lambda *_: None)


def buffer_that_ignores_its_deadline(patch: Patch) -> None:
    right = buffer._woke

    def wrong(state: Any, event: Woke, now_s: float) -> Any:
        return (state, ()) if event.timer == rounds.DEADLINE else right(state, event, now_s)

    change_row(patch, buffer, rounds.Phase.COLLECTING, Woke, wrong)


def invited_beyond_the_room(patch: Patch) -> None:
    patch.setattr(buffer, "room", lambda _state: 100)


def buffer_closed_by_fewer_than_the_quorum(patch: Patch) -> None:
    right = buffer._close_if_over

    def wrong(state: Any) -> Any:
        opened = msgspec.structs.replace(state.opened, needed=1)
        after, effects = right(replace(state, opened=opened))
        return replace(after, opened=state.opened), effects

    patch.setattr(buffer, "_close_if_over", wrong)


def receipt_of_a_buffer_before_commit(patch: Patch) -> None:
    right = buffer._arrived

    def wrong(state: Any, event: Any, now_s: float) -> Any:
        after, effects = right(state, event, now_s)
        return after, tuple(sorted(effects, key=lambda e: not isinstance(e, Publish)))

    change_row(patch, buffer, rounds.Phase.COLLECTING, UpdateArrived, wrong)


def trainees_asked_to_evaluate(patch: Patch) -> None:
    right = Evaluations.begin

    def wrong(self: Any, number: int, version: int, digest: bytes, _t: Any, now_s: float) -> None:
        right(self, number, version, digest, (), now_s)

    patch.setattr(Evaluations, "begin", wrong)


def vetoed_version_used_all_the_same(patch: Patch) -> None:
    right = DeviceDriver._persist

    def wrong(self: DeviceDriver, record: Any) -> None:
        right(self, record)
        if isinstance(record, VetoedRelease):
            self.released = self._model(record.version)

    patch.setattr(DeviceDriver, "_persist", wrong)


def veto_said_and_not_kept(patch: Patch) -> None:
    def wrong(_self: DeviceDisk, _vetoed: Any) -> None:
        return

    patch.setattr(DeviceDisk, "veto", wrong)


def veto_said_once(patch: Patch) -> None:
    right = releasing.released

    def wrong(s: Any, event: Release, now_s: float) -> Any:
        after, effects = right(s, event, now_s)
        return after, tuple(e for e in effects if not isinstance(e, Publish))

    for phase in (session.Phase.IDLE, session.Phase.SETTLED, session.Phase.DECLINED):
        change_row(patch, session, phase, Release, wrong)


ASYNC_MISTAKES: tuple[Callable[[Patch], None], ...] = (
    staleness_forgotten,
    anything_stale_taken,
    counted_in_the_round_that_asked_for_it,
    invitations_not_written_down,
    buffer_that_ignores_its_deadline,
    invited_beyond_the_room,
    buffer_closed_by_fewer_than_the_quorum,
    receipt_of_a_buffer_before_commit,
    trainees_asked_to_evaluate,
    settlement_before_the_transaction,
    duplicate_counted,
    commit_told_but_not_written,
)

MISTAKES: tuple[Callable[[Patch], None], ...] = (
    receipt_before_commit,
    settlement_before_the_transaction,
    duplicate_counted,
    weight_forgotten,
    clip_forgotten,
    clipped_twice_what_was_in_the_sum_already,
    clip_forgets_the_rounds_before,
    stale_round_accepted,
    settled_twice,
    counted_after_a_restart_but_not_summed,
    spool_emptied_too_early,
    quorum_ignored,
    deadline_forgotten_after_a_restart,
    timer_lost_on_reconnect,
    update_forgotten_at_its_receipt,
    seal_not_persisted,
    unreleased_model_used,
    chunks_of_another_update_mixed_in,
    rounds_never_closed_by_the_last_invitee,
    released_before_it_is_on_disk,
    invited_without_having_spoken,
    commit_told_but_not_written,
    committed_without_settling,
    update_ids_that_are_not_the_rounds,
    budget_forgotten_on_reboot,
    budget_of_a_day_that_a_clock_step_ends,
    training_goes_on_with_its_budget_spent,
    timers_left_where_they_were_when_the_clock_was_set,
    damaged_models_taken_for_good,
    full_disk_ends_the_process,
    update_known_that_found_no_room,
    commit_forgotten_that_found_no_room,
    veto_said_and_not_kept,
    veto_said_once,
    vetoed_version_used_all_the_same,
)


@pytest.fixture
def patch() -> Iterator[Patch]:
    with pytest.MonkeyPatch.context() as context:
        yield context


def found_at(mistake: Callable[[Patch], None], patch: Patch, mode: Mode = "safety") -> str | None:
    """The promise that breaks first, or what else gave the mistake away."""
    mistake(patch)
    for seed in range(SEEDS_MAX):
        try:
            trial = try_seed(seed, mode)
        except Exception as error:  # noqa: BLE001 - a mistake may break the machinery itself
            return f"seed {seed}: {type(error).__name__}: {error}"
        if trial.violation is not None:
            return f"seed {seed}: {trial.violation}"
    return None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_nemesis_finds_every_classic_mistake(
    mistake: Callable[[Patch], None], patch: Patch
) -> None:
    assert found_at(mistake, patch) is not None


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("mistake", ASYNC_MISTAKES, ids=lambda mistake: mistake.__name__)
def test_the_nemesis_finds_every_classic_mistake_of_asynchronous_rounds(
    mistake: Callable[[Patch], None], patch: Patch
) -> None:
    assert found_at(mistake, patch, "async_safety") is not None
