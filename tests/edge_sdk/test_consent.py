"""What an owner says after enrolling, over a real broker, beside a device that runs."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator import EmbeddedBroker
from edge_sdk import (
    Conditions,
    Device,
    DeviceInfo,
    FineTuningError,
    JournalError,
    Model,
    NumpyTrainer,
    Policy,
    consent,
    no_worse_than,
    read_status,
)
from edge_sdk.journal import SqliteJournal
from fleet.toy import ToyTask
from tests.support.federated import Federated
from tests.support.processes import until
from wire import Manifest, Plan, Report

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


@pytest.fixture
def federated(tmp_path: Path, broker: EmbeddedBroker) -> Iterator[Federated]:
    running = Federated(tmp_path, broker.url)
    yield running
    running.close()


def heard(reports: list[Report], what: str) -> Callable[[], bool]:
    return lambda: any(report.what == what for report in reports)


class PersonalToy(ToyTask):
    """The toy with a head of each device's own, and data that make one useful."""

    def model(self) -> Manifest:
        tensors = super().model().tensors
        return Manifest(tensors, parts={"w1": "personal", "b1": "personal"})


def test_opting_out_hangs_up_and_opting_in_comes_back(federated: Federated) -> None:
    reports: list[Report] = []
    device = federated.device(1, on_report=reports.append)
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version == 2, "the release")
    running = device._current
    assert running is not None
    consent.opt_out(device.state_dir)  # another process would
    until(heard(reports, "opted_out"), "the opt-out")
    until(lambda: not running.link.up, "hanging up")
    assert device.running
    assert (device.status.opted_out, device.status.waits) == (True, "opted_out")
    sent = running.link.traffic.sent_bytes
    device.stop()
    assert running.link.traffic.sent_bytes == sent
    assert device.model.version == 2
    device.start()  # a restart changes nothing
    time.sleep(0.5)
    assert device._current is not None
    assert not device._current.link.up
    device.opt_in()
    until(lambda: device._current is not None and device._current.link.up, "coming back")
    assert not device.status.opted_out
    device.stop()


def test_an_opt_out_stops_work_and_keeps_what_is_sealed(federated: Federated) -> None:
    reports: list[Report] = []
    device = federated.device(1, on_report=reports.append)
    device.enroll(federated.tokens)
    device.opt_out()
    device.start()
    time.sleep(0.3)
    assert not heard(reports, "invited")()
    device.opt_in()
    until(heard(reports, "released"), "rounds after the opt-in")
    device.stop()
    assert device.status.counted == 2


def test_another_process_may_have_a_running_device_leave(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version == 2, "the release")
    assert consent.leave(device.state_dir)
    assert not device.running
    assert not device.state_dir.exists()
    assert any(report.what == "left" for report in federated.reports)


def test_a_device_that_does_not_run_leaves_without_its_task(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.opt_out()
    assert consent.leave(device.state_dir)
    assert not device.state_dir.exists()
    until(lambda: any(report.what == "left" for report in federated.reports), "the revocation")


def test_a_device_that_has_opted_out_can_leave(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.opt_out()
    device.start()
    assert device.leave()


@pytest.mark.parametrize("say", [consent.opt_out, consent.opt_in, consent.leave])
def test_where_no_device_has_run_nothing_is_made(say: Any, tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="no device has run here yet"):
        say(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_release_that_the_app_refuses_stays_out_and_the_operator_sees_it(
    federated: Federated,
) -> None:
    asked: list[int] = []
    reports: list[Report] = []

    def check(candidate: Model, current: Model) -> str:
        asked.append(candidate.version)
        assert current.version == 0
        with pytest.raises(ValueError, match="read-only"):
            candidate.tensors["w0"][:] = 0.0
        return "smells odd"

    device = federated.device(1, check_release=check, on_report=reports.append)
    device.enroll(federated.tokens)
    device.start()
    until(
        lambda: any(r.what == "release_vetoed" for r in federated.reports), "the veto to be heard"
    )
    assert device.model.version == 0
    device.stop()
    veto = device.status.veto
    assert veto is not None
    assert (veto.version, veto.reason, veto.detail) == (2, "check_failed", "smells odd")
    again = federated.device(1, check_release=check)
    again.start()
    time.sleep(0.5)
    assert again.model.version == 0
    again.stop()
    assert asked == [2]


def test_a_release_that_is_no_worse_goes_through(federated: Federated) -> None:
    device = federated.device(1, check_release=no_worse_than(loss_margin=0.5))
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version == 2, "the release")
    device.stop()


# -- the personal part ---------------------------------------------------------------------------


def test_fine_tuning_changes_the_personal_part_alone_and_counts_in_the_day(tmp_path: Path) -> None:
    device = Device(PersonalToy(), tmp_path / "device", info=DeviceInfo(seed=3))
    before = {name: array.copy() for name, array in device.model.tensors.items()}
    result = device.fine_tune(Plan(local_epochs=2, learning_rate=0.05))
    assert result.kept
    assert result.after.loss < result.before.loss
    after = device.model.tensors
    for name in ("w0", "b0"):
        np.testing.assert_array_equal(after[name], before[name])
    assert not np.array_equal(after["w1"], before["w1"])
    assert read_status(device.state_dir).spent_training_s_today > 0.0
    other = Device(PersonalToy(), tmp_path / "device")
    np.testing.assert_array_equal(other.model.tensors["w1"], after["w1"])


def test_a_closed_gate_refuses_fine_tuning_unless_told_otherwise(tmp_path: Path) -> None:
    device = Device(
        PersonalToy(),
        tmp_path / "device",
        policy=Policy(require_charging=True),
        conditions=lambda: Conditions(charging=False),
    )
    with pytest.raises(FineTuningError) as refused:
        device.fine_tune()
    assert refused.value.reason == "not_charging"
    assert device.fine_tune(anyway=True).num_examples == 24


def test_a_gate_that_closes_stops_fine_tuning_and_leaves_all_as_it_was(tmp_path: Path) -> None:
    looks = iter([True, True])
    device = Device(
        PersonalToy(),
        tmp_path / "device",
        policy=Policy(require_charging=True),
        conditions=lambda: Conditions(charging=next(looks, False)),
    )
    with pytest.raises(FineTuningError) as stopped:
        device.fine_tune(Plan(local_epochs=10_000))
    assert stopped.value.reason == "not_charging"
    assert not (tmp_path / "device" / "models" / "personal.npz").exists()


def test_a_task_without_a_personal_part_says_how_to_have_one(tmp_path: Path) -> None:
    with pytest.raises(FineTuningError, match="nothing_personal"):
        Device(ToyTask(), tmp_path / "device").fine_tune()


def test_a_trainer_that_moves_the_shared_part_is_found_out(tmp_path: Path) -> None:
    class Stubborn(NumpyTrainer):
        def train(self, model: Model, plan: Plan, *, stop: Any) -> Any:
            return super().train(Model(model.version, model.tensors), plan, stop=stop)

    class Task(PersonalToy):
        def trainer(self, device: DeviceInfo) -> NumpyTrainer:
            inner = super().trainer(device)
            return Stubborn(inner._x, inner._y)

    with pytest.raises(FineTuningError, match=r"Model\.trainable"):
        Device(Task(), tmp_path / "device").fine_tune()


class CountingTask(PersonalToy):
    """Says how many trainings there were at once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = self.calls = 0

    def trainer(self, device: DeviceInfo) -> NumpyTrainer:
        task, inner = self, super().trainer(device)

        class Counting(NumpyTrainer):
            def train(self, model: Model, plan: Plan, *, stop: Any) -> Any:
                task.inside, task.calls = task.inside + 1, task.calls + 1
                task.most = max(task.most, task.inside)
                time.sleep(0.05)
                done = super().train(model, plan, stop=stop)
                task.inside -= 1
                return done

        return Counting(inner._x, inner._y, holdout=inner._holdout, seed=device.seed)


def test_fine_tuning_takes_turns_with_rounds_and_the_app_sees_what_it_made(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    task = CountingTask()
    federated = Federated(tmp_path, broker.url, task=task)
    try:
        device = federated.device(1)
        device.enroll(federated.tokens)
        device.start()
        kept = 0
        while device.model.version < 2:
            before = device.model.tensors["w1"]
            tuned = device.fine_tune(Plan(learning_rate=0.01))
            kept += tuned.kept
            assert tuned.kept != np.array_equal(device.model.tensors["w1"], before)
        assert (task.most, kept > 0) == (1, True)
        assert device.status.counted == 2
        device.stop()
    finally:
        federated.close()


def test_an_opt_out_is_a_line_in_the_journal(tmp_path: Path) -> None:
    SqliteJournal(tmp_path).close()
    assert consent.opt_out(tmp_path)
    assert not consent.opt_out(tmp_path)
    assert read_status(tmp_path).opted_out
    assert consent.opt_in(tmp_path)
    assert not read_status(tmp_path).opted_out
