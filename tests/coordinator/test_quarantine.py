"""Strikes, quarantine and the way back: pure rules, the store, and a device that lives them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator import pardon
from coordinator.config import Rounds
from coordinator.quarantine import PROBATION, Quarantine, judge, let_back
from coordinator.store import DiskFullError, Standing, Store
from tests.support.loopback import Loopback
from wire import frames, topics
from wire.messages import ComeBackAt

HOUR_S = 3_600.0
STRIKES = st.lists(st.floats(-1.0, 1.0), max_size=40)


def after(standing: Standing, *strikes: float, now_s: float = 0.0, most: int = 3) -> Standing:
    for strike in strikes:
        standing = judge(standing, strike, strikes_max=most, quarantine_s=HOUR_S, now_s=now_s)
    return standing


@given(STRIKES)
def test_strikes_are_never_below_nothing_nor_too_many(strikes: list[float]) -> None:
    standing = Standing()
    for strike in strikes:
        standing = after(standing, strike)
        assert 0.0 <= standing.strikes < 3.0
        if standing.quarantined_until is not None:
            break


def test_whole_strikes_quarantine_and_clean_updates_take_them_back() -> None:
    assert after(Standing(), 1.0, 1.0).quarantined_until is None
    assert after(Standing(), 1.0, 1.0, 1.0).quarantined_until == HOUR_S
    assert after(Standing(), 1.0, 1.0, -1.0, 1.0) == Standing(strikes=2.0)
    assert after(Standing(), *[1.0] * 50, most=0).quarantined_until is None


def test_a_device_is_let_back_on_probation_where_one_strike_is_enough() -> None:
    out = after(Standing(), 1.0, 1.0, 1.0)
    assert let_back(out, HOUR_S - 1.0) == out
    back = let_back(out, HOUR_S)
    assert back == Standing(probation=PROBATION, quarantines=1)
    again = after(back, -0.5, 1.0, now_s=10.0)
    assert again.quarantined_until == 10.0 + 2 * HOUR_S
    clean = after(back, *[-0.5] * PROBATION)
    assert clean == Standing(quarantines=1)
    assert after(clean, 1.0).quarantined_until is None


# -- on disk ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.sqlite3")
    for number in range(10):
        made.admit(f"d{number}", bytes(32), "unknown", 0.0)
    yield made
    made.close()


def quarantine(store: Store, share_max: float = 0.3) -> Quarantine:
    return Quarantine(store, strikes_max=2, quarantine_s=HOUR_S, share_max=share_max)


def strike_out(store: Store, device: str, *, share_max: float = 0.3, now_s: float = 5.0) -> bool:
    here = quarantine(store, share_max)
    return [here.strike(device, n, now_s, reason="not_finite") for n in (1, 2)][-1]


def test_the_trail_says_who_when_and_why_and_survives_a_restart(
    store: Store, tmp_path: Path
) -> None:
    assert strike_out(store, "d1")
    other = Store(tmp_path / "state.sqlite3")
    assert [(r.device, r.round, r.what, r.reason, r.at) for r in other.audit()] == [
        ("d1", 1, "strike", "not_finite", 5.0),
        ("d1", 2, "strike", "not_finite", 5.0),
        ("d1", 2, "quarantined", "not_finite", 5.0),
    ]
    assert quarantine(other).is_out("d1", 6.0)
    assert not quarantine(other).is_out("d2", 6.0)
    assert not quarantine(other).strike("d1", 3, 6.0, reason="not_finite")
    other.close()


def test_time_lets_back_and_the_trail_says_so(store: Store) -> None:
    strike_out(store, "d1", now_s=0.0)
    assert quarantine(store).is_out("d1", HOUR_S - 1.0)
    assert not quarantine(store).is_out("d1", HOUR_S)
    assert store.standing("d1").probation == PROBATION
    assert store.audit()[-1].what == "let_back"


def test_without_room_time_lets_back_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike_out(store, "d0")
    with monkeypatch.context() as full:

        def no_room(*_: object) -> None:
            raise DiskFullError("full")

        full.setattr(store, "set_standing", no_room)
        assert not quarantine(store).is_out("d0", 5.0 + HOUR_S)
    assert not quarantine(store).is_out("d0", 5.0 + HOUR_S)
    assert store.standing("d0").probation == PROBATION


def test_a_pardon_by_another_process_is_heard_at_once(store: Store, tmp_path: Path) -> None:
    strike_out(store, "d1")
    other = Store(tmp_path / "state.sqlite3")
    assert pardon(other, "d1", 9.0).quarantined_until is not None
    other.close()
    assert not quarantine(store).is_out("d1", 9.0)
    assert store.standing("d1") == Standing()
    assert store.audit()[-1].what == "pardoned"


def test_no_more_than_the_share_is_ever_out_at_once(store: Store) -> None:
    assert [strike_out(store, f"d{n}") for n in range(5)] == [True, True, True, False, False]
    assert sorted(store.quarantined()) == ["d0", "d1", "d2"]
    pardon(store, "d0", 9.0)
    assert quarantine(store).strike("d3", 3, 9.0, reason="not_finite")


def test_a_clock_that_is_set_neither_frees_nor_forgets(store: Store) -> None:
    strike_out(store, "d1", now_s=0.0)
    here = quarantine(store)
    here.on_clock_step(1e9)
    assert here.until_s("d1", 1e9) == 1e9 + HOUR_S
    assert (here.until_s("d1", -1e12) or 0.0) <= -1e12 + 64 * HOUR_S + 1.0


# -- a device that lives it ------------------------------------------------------------------------


def come_backs(loopback: Loopback, said: list[tuple[str, bytes]]) -> list[ComeBackAt]:
    found = []
    for topic, data in said:
        if data[4] == ComeBackAt.KIND and loopback.devices[0].session.device in topic:
            message = frames.decode(frames.parse(data), topics.parse(topic))
            assert isinstance(message, ComeBackAt)
            found.append(message)
    return found


def test_a_quarantined_device_is_told_to_come_back_and_not_invited_until_it_is_pardoned(
    tmp_path: Path,
) -> None:
    said: list[tuple[str, bytes]] = []

    def listen(topic: str, data: bytes) -> list[bytes]:
        said.append((topic, data))
        return [data]

    rounds = Rounds(count=2, cohort=4, quorum=0.5, deadline_s=60.0)
    loopback = Loopback(tmp_path, count=6, rounds=rounds, tamper=listen)
    store = loopback.coordinator.store
    name = loopback.devices[0].session.device
    for number in (1, 2, 3):
        loopback.coordinator.rounds.quarantine.strike(
            name, number, loopback.now_s, reason="not_finite"
        )
    assert list(store.quarantined()) == [name]
    loopback.start()
    loopback.play()
    assert loopback.coordinator.finished
    assert all(name not in store.round_opened(n).invited for n in (1, 2))  # type: ignore[union-attr] # both were
    assert "quarantined" in [message.reason for message in come_backs(loopback, said)]
    said.clear()
    loopback.coordinator.pardon(name, loopback.now_s)
    assert [(m.after_s, m.reason) for m in come_backs(loopback, said)] == [(0.0, "pardoned")]
    assert not store.quarantined()
