"""`Device` as an app embeds it, over a real broker, with a real coordinator in this process."""

import os
import shutil
import sys
import threading
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
    DeviceError,
    DeviceInfo,
    EnrolmentError,
    ExampleStore,
    Model,
    NumpyTrainer,
    Policy,
    TrainingStoppedError,
    TrainResult,
    read_status,
)
from edge_sdk._priority import NICE
from edge_sdk.journal import SqliteJournal
from edge_sdk.policy import GATE_EVERY_S
from fleet.toy import ToyTask
from tests.support.federated import Federated
from tests.support.processes import until
from wire import Report
from wire.lock import AlreadyRunningError

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


def test_an_app_gets_the_released_model_and_can_leave(federated: Federated) -> None:
    device = federated.device(1)
    assert device.model.version == 0
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version == 2, "the release")
    path = device.model.path
    assert path is not None
    with np.load(path) as file:
        np.testing.assert_array_equal(file["w0"], device.model.tensors["w0"])
    assert device.status.counted == 2
    assert device.leave()
    assert not (federated.directory / "device-1").exists()
    assert any(report.what == "left" for report in federated.reports)


def test_the_model_is_there_after_a_restart_and_offline(
    federated: Federated, broker: EmbeddedBroker
) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version == 2, "the release")
    kept = device.model.tensors["w0"].copy()
    device.stop()
    broker.kill()
    again = federated.device(1)
    assert again.model.version == 2
    again.start()
    np.testing.assert_array_equal(again.model.tensors["w0"], kept)
    again.stop()
    broker.start()


def test_enrolling_twice_keeps_the_first_name_and_the_other_tokens(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    name = device.status.device
    device.enroll(federated.tokens)
    assert device.status.device == name
    other = federated.device(2)
    other.enroll(federated.tokens)  # the first token is used up: the next one serves
    assert other.status.device not in (None, name)


def test_two_devices_that_try_one_token_file_at_once_get_two_names(federated: Federated) -> None:
    devices = [federated.device(number) for number in range(4)]
    threads = [threading.Thread(target=d.enroll, args=(federated.tokens,)) for d in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({device.status.device for device in devices}) == 4


def test_a_used_up_token_file_is_a_typed_error(federated: Federated) -> None:
    for number in range(4):
        federated.device(number).enroll(federated.tokens)
    with pytest.raises(EnrolmentError, match="used by another device"):
        federated.device(9).enroll(federated.tokens)


def test_an_owner_who_refuses_sends_nothing(federated: Federated) -> None:
    with pytest.raises(EnrolmentError, match="consent"):
        federated.device(1).enroll(federated.tokens, consent=lambda: False)
    assert not any(report.what == "enrolled" for report in federated.reports)


def test_a_device_that_is_not_enrolled_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not enrolled"):
        Device(ToyTask(), tmp_path / "device").start()


def test_no_broker_is_a_word_and_no_crash(federated: Federated, tmp_path: Path) -> None:
    device = federated.device(1, broker="mqtt://127.0.0.1:9")
    with pytest.raises(EnrolmentError, match="no broker answers"):
        device.enroll(federated.tokens, timeout_s=1.0)
    assert (tmp_path / "device-1").exists()


def test_one_state_directory_has_one_device(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.start()
    with pytest.raises(AlreadyRunningError, match="another process"):
        federated.device(1).start()
    device.stop()


def test_a_low_battery_keeps_a_device_out_and_a_charger_brings_it_in(
    federated: Federated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sdk._gatekeeper.GATE_EVERY_S", 0.1)
    now = [Conditions(battery_fraction=0.1, charging=False)]
    device = federated.device(1, conditions=lambda: now[0])
    device.enroll(federated.tokens)
    device.start()
    time.sleep(1.0)
    assert not any(report.what == "round_opened" for report in federated.reports)
    now[0] = Conditions(battery_fraction=0.1, charging=True)
    until(lambda: device.model.version == 2, "the release")
    device.stop()


def test_a_device_that_waits_for_its_next_look_stops_at_once(federated: Federated) -> None:
    device = federated.device(1, conditions=lambda: Conditions(0.1, charging=False))
    device.enroll(federated.tokens)
    device.start()
    time.sleep(0.5)
    began_s = time.monotonic()
    device.stop()
    assert time.monotonic() - began_s < GATE_EVERY_S / 2


def test_a_stop_that_comes_while_a_device_is_made_is_not_forgotten(
    federated: Federated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a signal, in the middle of anything."""
    device = federated.device(1)
    device.enroll(federated.tokens)
    prepare = device._prepare

    def interrupted() -> Any:
        running = prepare()
        device.stop()
        return running

    monkeypatch.setattr(device, "_prepare", interrupted)
    device.run()
    monkeypatch.undo()
    device.start()  # and is forgotten then
    assert device.running
    with pytest.raises(DeviceError, match="running already"):
        device.run()
    assert device.running
    device.stop()


def test_conditions_that_raise_close_the_gate_and_nothing_else(federated: Federated) -> None:
    def broken() -> Conditions:
        raise OSError("no such sensor")

    device = federated.device(1, conditions=broken)
    device.enroll(federated.tokens)
    device.start()
    time.sleep(0.5)
    assert device.running
    assert device.error is None
    device.stop()


def test_a_device_that_is_not_running_can_leave(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    (device.state_dir / "the-apps-own").write_text("kept")
    assert device.leave()
    assert [path.name for path in device.state_dir.iterdir()] == ["the-apps-own"]


def test_a_revoked_device_can_begin_anew_with_another_token(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    name = device.status.device
    journal = SqliteJournal(device.state_dir)
    journal.revoke("owner_left")
    journal.close()
    device.enroll(federated.tokens)
    assert device.status.device not in (None, name)


def test_an_app_whose_report_callback_raises_keeps_its_device(federated: Federated) -> None:
    def broken(_report: Report) -> None:
        raise ValueError("the app's own bug")

    device = federated.device(1, on_report=broken)
    device.enroll(federated.tokens)
    device.start()
    until(lambda: device.model.version == 2, "the release")
    device.stop()
    assert device.error is None


def test_the_apps_model_cannot_be_written_to(federated: Federated) -> None:
    device = federated.device(1)
    with pytest.raises(ValueError, match="read-only"):
        device.model.tensors["w0"][0, 0] = 1.0


def test_a_wrong_broker_url_does_not_keep_the_directory(federated: Federated) -> None:
    federated.device(1).enroll(federated.tokens)
    with pytest.raises(Exception, match="broker URL"):
        federated.device(1, broker="nonsense").start()
    device = federated.device(1)
    device.start()
    device.stop()


class Failing(ToyTask):
    def trainer(self, device: DeviceInfo) -> Any:
        trainer: Any = super().trainer(device)

        def train(_model: Model, _plan: object, *, stop: Callable[[], bool]) -> TrainResult:
            raise RuntimeError(f"no data today {stop()}")

        trainer.train = train
        return trainer


def test_a_trainer_that_raises_is_reported_and_the_app_goes_on(federated: Federated) -> None:
    device = federated.device(1, task=Failing())
    device.enroll(federated.tokens)
    device.start()
    until(
        lambda: any(
            r.what == "invitee_lost" and r.detail == "trainer_failed" for r in federated.reports
        ),
        "the typed failure",
    )
    assert device.running
    assert device.model.version == 0
    device.stop()


def test_a_journal_that_is_gone_stops_the_device_and_not_the_app(federated: Federated) -> None:
    device = federated.device(1)
    device.enroll(federated.tokens)
    shutil.rmtree(federated.directory / "device-1")
    with pytest.raises(DeviceError, match="not enrolled"):
        device.run()


def test_status_of_nothing_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no device has run here"):
        read_status(tmp_path)


def test_leaving_deletes_the_app_s_examples_and_its_loop_goes_on(federated: Federated) -> None:
    path = federated.directory / "examples" / "store.sqlite"
    store = ExampleStore(path, {"x": ("float32", (8,)), "y": ("int64", ())})
    for number in range(50):
        store.add(np.full(8, number, np.float32), number % 2)
    store.flush()
    device = federated.device(1, examples=store)
    device.enroll(federated.tokens)
    device.start()
    assert path.exists()
    assert device.leave()
    assert list(path.parent.iterdir()) == []
    assert store.add(np.zeros(8, np.float32), 0) is False


def test_a_store_that_was_not_handed_over_stays(federated: Federated) -> None:
    store = ExampleStore(federated.directory / "device-1" / "mine.sqlite", {"x": ("float32", ())})
    store.add(1.0)
    store.close()
    device = federated.device(1)
    device.enroll(federated.tokens)
    device.leave(timeout_s=0.1)
    assert store.path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
@pytest.mark.parametrize("low", [False, True])
def test_training_lets_others_go_first_if_the_owner_says_so(
    federated: Federated, *, low: bool
) -> None:
    found: list[int] = []

    class Noting(ToyTask):
        def trainer(self, device: DeviceInfo) -> NumpyTrainer:
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().trainer(device)

    device = federated.device(1, Noting(), policy=Policy(low_priority=low))
    device.enroll(federated.tokens)
    device.start()
    until(lambda: found, "training")
    device.stop()
    assert found[0] == (NICE if low else os.getpriority(os.PRIO_PROCESS, 0))


class Endless(ToyTask):
    """Trains until it is stopped, in batches of 10 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.training = threading.Event()
        self.stopped_at_s = 0.0

    def trainer(self, device: DeviceInfo) -> Any:
        task, trainer = self, super().trainer(device)

        class Slow:
            evaluate = staticmethod(trainer.evaluate)

            def train(self, *_: object, stop: Callable[[], bool]) -> TrainResult:
                task.training.set()
                while not stop():
                    time.sleep(0.01)
                task.stopped_at_s = time.monotonic()
                raise TrainingStoppedError("stopped")

        return Slow()


def test_training_stops_within_a_second_of_the_condition_and_the_reason_is_known(
    federated: Federated,
) -> None:
    task, heat_c = Endless(), [40.0]
    reports: list[Report] = []
    device = federated.device(
        1, task, conditions={"temperature_c": lambda: heat_c[0]}, on_report=reports.append
    )
    device.enroll(federated.tokens)
    device.start()
    assert task.training.wait(30.0)
    time.sleep(1.3)
    heat_c[0], hot_at_s = 95.0, time.monotonic()
    until(lambda: task.stopped_at_s > 0.0, "the trainer to be stopped")
    assert task.stopped_at_s - hot_at_s < 1.0
    until(lambda: device.status.waits == "too_hot", "the reason to be kept")
    assert Report("discarded", "too_hot") in reports
    device.stop()
    status = read_status(federated.directory / "device-1")
    assert status.waits == "stopped"
    assert status.spent_training_s_today > 1.0
    assert status.spent_joules_today > 1.0


def test_a_budget_of_seconds_ends_training_and_is_spent_after_a_restart(
    federated: Federated,
) -> None:
    task = Endless()
    policy = Policy(training_s_per_day_max=1.0)
    device = federated.device(1, task, policy=policy)
    device.enroll(federated.tokens)
    device.start()
    until(lambda: task.stopped_at_s > 0.0, "the trainer to be stopped")
    until(lambda: device.status.waits == "training_budget_spent", "the reason to be kept")
    device.stop()
    assert 1.0 <= device.status.spent_training_s_today < 2.0
    again = federated.device(1, task, policy=policy)
    again.start()
    until(lambda: again.status.waits == "training_budget_spent", "the reason to be kept")
    again.stop()
