"""A federation file that is changed under a running federation, or between two runs."""

import threading
from pathlib import Path

import msgspec
import pytest

from coordinator import init_state
from coordinator.changes import ConfigChangeError, changes, check_changes, remember, remembered
from coordinator.config import (
    Aggregation,
    Federation,
    FederationConfig,
    Fleet,
    Privacy,
    Rounds,
    Uplink,
    load_config,
)
from coordinator.gateway import Gateway
from coordinator.reload import ReloadDesk, ask_to_reload
from coordinator.store import Store, StoreError
from fleet import StubCrypto
from fleet.toy import ToyTask
from tests.support.loopback import Loopback
from wire import Report, SystemSecrets
from wire.lock import InstanceLock

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

ROUNDS = Rounds(count=3, cohort=2, quorum=1.0, deadline_s=600.0)


def altered(config: FederationConfig, **tables: object) -> FederationConfig:
    return msgspec.structs.replace(config, **tables)


def until_open(loopback: Loopback, number: int) -> None:
    while loopback.coordinator.store.last_round() < number:
        if not loopback.deliver():
            loopback.now_s += 2.5
            loopback.coordinator.wake(loopback.now_s)


def said(loopback: Loopback, what: str) -> list[str]:
    return [report.detail for report in loopback.reports if report.what == what]


def cohorts(loopback: Loopback) -> list[int]:
    store = loopback.coordinator.store
    return [r.cohort for n in range(1, store.last_round() + 1) if (r := store.round_opened(n))]


def test_what_changes_is_in_force_from_the_next_round_on_and_an_open_round_keeps_its_own(
    tmp_path: Path,
) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    loopback.start()
    until_open(loopback, 1)
    more = msgspec.structs.replace(ROUNDS, cohort=3, count=4)
    new = altered(loopback.config, rounds=more, uplink=Uplink(codec="q8"))
    loopback.coordinator.reconfigure(new, loopback.now_s)
    assert loopback.coordinator.config == loopback.config
    assert said(loopback, "config_changed") == []
    loopback.play(until_s=3_000.0)
    assert cohorts(loopback) == [2, 3, 3, 3]
    codecs = [r.codec for n in range(1, 5) if (r := loopback.coordinator.store.round_opened(n))]
    assert codecs[0].startswith("auto")
    assert codecs[1:] == ["q8"] * 3
    assert said(loopback, "config_changed") == [
        "rounds.count: 3 -> 4",
        "rounds.cohort: 2 -> 3",
        'uplink.codec: "auto" -> "q8"',
    ]
    assert loopback.coordinator.config == new


def test_whatever_reads_the_file_reads_the_one_that_is_in_force(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=6, rounds=ROUNDS)
    loopback.start()
    until_open(loopback, 1)
    measured = msgspec.structs.replace(ROUNDS, evaluate_every=1, evaluate_cohort=2)
    strict = Aggregation(strikes_max=1, attackers_max=0.4)
    new = altered(loopback.config, rounds=measured, aggregation=strict)
    coordinator = loopback.coordinator
    coordinator.reconfigure(new, loopback.now_s)
    loopback.play(until_s=3_000.0)
    assert coordinator.store.evaluations(3) != []
    liar = min(coordinator.store.devices())
    assert coordinator.rounds.quarantine.strike(liar, 3, loopback.now_s, reason="rubbish")


def test_a_file_changed_while_nothing_ran_waits_for_the_open_rounds_edge_too(
    tmp_path: Path,
) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    loopback.start()
    until_open(loopback, 1)
    loopback.coordinator.store.close()
    old = loopback.config
    loopback.config = altered(old, rounds=msgspec.structs.replace(ROUNDS, cohort=3))
    loopback.boot_coordinator().start(loopback.now_s)
    assert loopback.coordinator.config == old
    loopback.coordinator.on_link_up(131_072, loopback.now_s)
    loopback.play(until_s=3_000.0)
    assert cohorts(loopback) == [2, 3, 3]
    assert said(loopback, "config_changed") == ["rounds.cohort: 2 -> 3"]


def test_without_a_change_nothing_is_said_and_fleet_is_nobodys_business(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    loopback.start()
    loopback.play()
    loopback.coordinator.store.close()
    loopback.config = altered(loopback.config, fleet=Fleet(check_in_s=60.0))
    loopback.boot_coordinator().start(loopback.now_s)
    loopback.coordinator.wake(loopback.now_s)
    assert said(loopback, "config_changed") == []
    assert loopback.coordinator.finished


def test_more_rounds_are_held_by_a_federation_that_was_over(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    loopback.start()
    loopback.play()
    assert loopback.coordinator.finished
    more = altered(loopback.config, rounds=msgspec.structs.replace(ROUNDS, count=5))
    loopback.coordinator.reconfigure(more, loopback.now_s)
    loopback.coordinator.wake(loopback.now_s)
    assert loopback.coordinator.store.last_round() == 3
    loopback.play(until_s=20_000.0)
    assert loopback.coordinator.models.version == 5


PRIVATE = FederationConfig(privacy=msgspec.structs.replace(Privacy(), mode="central"))


@pytest.mark.parametrize(
    ("old", "new", "spent", "running", "why"),
    [
        (
            FederationConfig(),
            FederationConfig(federation=Federation(name="other")),
            False,
            False,
            r'^federation.name: "digits" -> "other": not possible: .* another state directory$',
        ),
        (PRIVATE, FederationConfig(), True, False, r'^privacy.mode: "central" -> "none": not .*'),
        (
            FederationConfig(),
            FederationConfig(federation=Federation(task="mine:task")),
            False,
            True,
            r"^federation.task: .* stopped and run again$",
        ),
    ],
)
def test_what_may_not_change_is_refused_with_the_key_and_the_reason(
    *, old: FederationConfig, new: FederationConfig, spent: bool, running: bool, why: str
) -> None:
    with pytest.raises(ConfigChangeError, match=why):
        check_changes(old, new, spent=spent, running=running)


def test_before_anything_is_spent_privacy_may_change() -> None:
    assert [c.key for c in check_changes(PRIVATE, FederationConfig(), spent=False, running=True)]


def test_a_refused_file_changes_nothing(tmp_path: Path) -> None:
    loopback = Loopback(tmp_path, count=4, rounds=ROUNDS)
    loopback.start()
    other = altered(loopback.config, federation=Federation(name="other"), rounds=Rounds(count=9))
    with pytest.raises(ConfigChangeError):
        loopback.coordinator.reconfigure(other, loopback.now_s)
    loopback.play()
    assert loopback.coordinator.config == loopback.config
    loopback.coordinator.store.close()
    loopback.config = other
    with pytest.raises(ConfigChangeError, match=r"federation\.name"):
        loopback.boot_coordinator()


def test_a_file_is_remembered_whole_and_one_of_another_potluck_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite3")
    assert remembered(store) is None
    config = FederationConfig(rounds=Rounds(count=7), uplink=Uplink(codec="q4"))
    remember(store, config)
    kept = remembered(store)
    assert kept == config
    assert changes(config, kept) == ()
    store.put("config", b'{"rounds": {"from_the_future": 1}}')
    assert remembered(store) is None
    store.close()


# -- asking a running coordinator ------------------------------------------------------------------


def test_whoever_asks_is_answered_and_told_why_not(tmp_path: Path) -> None:
    lock = InstanceLock(tmp_path)
    answers = iter(["", "f.toml:3: key 'cohrt' is unknown"])
    desk, over = ReloadDesk(tmp_path), threading.Event()

    def serve() -> None:
        while not over.is_set():
            if desk.asked():
                desk.answer(next(answers))
            desk._look_at_s = 0.0
            over.wait(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ask_to_reload(tmp_path)
        with pytest.raises(StoreError, match=r"cohrt.*the old file stays in force"):
            ask_to_reload(tmp_path)
    finally:
        over.set()
        thread.join()
        lock.release()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("reload")]


def test_where_no_coordinator_runs_nobody_waits_for_an_answer(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no coordinator runs here; the next run reads the file"):
        ask_to_reload(tmp_path)
    with pytest.raises(StoreError, match="no coordinator here"):
        ask_to_reload(tmp_path / "nowhere")


def test_a_coordinator_that_does_not_answer_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    lock = InstanceLock(tmp_path)
    with pytest.raises(StoreError, match="does not answer"):
        ask_to_reload(tmp_path, patience_s=0.1)
    lock.release()
    assert not ReloadDesk(tmp_path).asked(), "a question of before this start"


def test_a_signal_asks_once(tmp_path: Path) -> None:
    desk = ReloadDesk(tmp_path)
    desk.signal()
    assert desk.asked()
    assert not desk.asked()


@pytest.mark.live
def test_a_gateway_takes_a_good_file_and_keeps_the_old_one_for_a_bad_one(tmp_path: Path) -> None:
    init_state(tmp_path / "state", SystemSecrets())
    file, reports = tmp_path / "federation.toml", list[Report]()
    file.write_text("[rounds]\ncount = 3\n")
    gateway = Gateway(
        config=load_config(file),
        task=ToyTask(),
        state_dir=tmp_path / "state",
        crypto=StubCrypto(),
        observe=reports.append,
        reread=lambda: load_config(file),
    )
    try:
        gateway.start()
        gateway.turn(0.05)
        file.write_text("[rounds]\ncohrt = 3\n")
        gateway.ask_to_reload()
        gateway.turn(0.05)
        assert gateway.coordinator.config.rounds.count == 3
        file.write_text("[rounds]\ncount = 9\n")
        gateway.ask_to_reload()
        for _ in range(3):
            gateway.turn(0.05)
        assert gateway.coordinator.config.rounds.count == 9
        file.write_text('[federation]\nname = "other"\n')
        assert "not possible" in gateway.reload()
    finally:
        gateway.stop()
    told = [r.what for r in reports if r.what.startswith("config")]
    assert told == ["config_rejected", "config_read", "config_changed", "config_rejected"]
