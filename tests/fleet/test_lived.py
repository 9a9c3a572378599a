import pytest
from msgspec.structs import replace

from coordinator.config import Federation, FederationConfig, Fleet, Rounds
from device_profiles import DeviceProfile, load_class
from edge_sdk import Policy
from edge_sdk.forecast import HORIZON_S, UNKNOWN_S, Diary
from fleet import FleetRun, StubCrypto, run_virtual
from fleet.lived import DAYS_BEFORE, chance_of, live_before
from fleet.toy import ToyTask
from insight import RunRecord

MONDAY_S = 1_767_571_200.0
POLICY = Policy(cpu_load_max=0.5)


def test_chance_is_looked_up_and_differs_by_purpose_and_number() -> None:
    drawn = [chance_of(seed, what, n) for seed in (1, 2) for what in ("a", "b") for n in range(50)]
    assert len(set(drawn)) == len(drawn)
    assert chance_of(1, "a", 3) == chance_of(1, "a", 3)
    mean = sum(first for first, _, _ in drawn) / len(drawn)
    assert 0.4 < mean < 0.6
    assert all(0.0 <= each < 1.0 for three in drawn for each in three)


def test_a_board_on_mains_has_been_there_all_the_time() -> None:
    diary = Diary.load(live_before(load_class("pi-4"), 1, MONDAY_S, POLICY))
    diary = diary.note(MONDAY_S, is_open=True)
    assert diary.forecast_s(MONDAY_S) == HORIZON_S


def test_phones_know_their_nights() -> None:
    phone = load_class("phone-mid")
    forecasts = []
    for seed in range(12):
        spells = live_before(phone, seed, MONDAY_S + 2 * 3_600.0, POLICY)
        assert all(s.opened_s >= MONDAY_S - DAYS_BEFORE * 86_400.0 for s in spells.spells)
        forecasts.append(Diary.load(spells).forecast_s(MONDAY_S + 2 * 3_600.0))
    known = [each for each in forecasts if each != UNKNOWN_S]
    assert len(known) >= 3
    assert all(0.0 < each <= HORIZON_S for each in known)


def one_day(profile: DeviceProfile, monkeypatch: pytest.MonkeyPatch, seed: int = 1) -> RunRecord:
    monkeypatch.setattr("fleet.devices.profiles", lambda _c, count, _s: [profile] * count)
    monkeypatch.setattr("fleet.virtual.profiles", lambda _c, count, _s: [profile] * count)
    config = FederationConfig(
        federation=Federation(name="lived", task="fleet.toy:task"),
        rounds=Rounds(count=6, cohort=6, quorum=0.2, deadline_s=300.0, every_s=600.0),
        fleet=Fleet(partition="iid"),
    )
    task = ToyTask(flops_per_example=2.5e10)
    return run_virtual(FleetRun(config=config, task=task, count=10, seed=seed, crypto=StubCrypto()))


@pytest.mark.slow
def test_devices_vanish_as_often_as_their_class_does_and_their_time_is_wasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steady = replace(load_class("pi-5"), vanish_per_round=0.0, reboots_per_day=0.0)
    calm = one_day(steady, monkeypatch)
    assert sum(record.missing for record in calm.rounds) == 0
    assert calm.totals.device_s is not None
    assert calm.totals.device_s > 0.0
    flaky = one_day(replace(steady, vanish_per_round=0.4), monkeypatch)
    assert sum(record.missing for record in flaky.rounds) >= 5
    assert flaky.totals.wasted_device_s is not None
    assert calm.totals.wasted_device_s is not None
    assert flaky.totals.wasted_device_s > calm.totals.wasted_device_s


@pytest.mark.slow
def test_devices_reboot_as_often_as_their_class_does(monkeypatch: pytest.MonkeyPatch) -> None:
    restless = replace(load_class("pi-5"), vanish_per_round=0.0, reboots_per_day=60.0)
    first, second = one_day(restless, monkeypatch), one_day(restless, monkeypatch)
    assert first.totals.trace_digest == second.totals.trace_digest
    calm = one_day(replace(restless, reboots_per_day=0.0), monkeypatch)
    assert calm.totals.trace_digest != first.totals.trace_digest
    assert all(record.status == "committed" for record in first.rounds)


@pytest.mark.slow
def test_a_record_says_who_took_part_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = one_day(load_class("pi-5"), monkeypatch).participation
    assert (only.device_class, only.there, only.ratio) == ("pi-5", 1.0, 1.0)
    assert only.updates <= only.invitations
