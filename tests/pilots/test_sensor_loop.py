import json
from pathlib import Path

import numpy as np
import pytest

from edge_sdk import DeviceInfo, ExampleStore, Model, NumpyTrainer
from pilots.sensor_loop import (
    ACTIVITIES,
    FEATURES,
    FIELDS,
    SPELL,
    TICK_S,
    Accelerometer,
    App,
    Gaits,
    _lateness,
    big,
    main,
    task,
    windows,
)
from wire import Plan


def test_the_same_seed_is_the_same_person_and_another_is_not() -> None:
    one, again, other = Accelerometer(7), Accelerometer(7), Accelerometer(8)
    ticks = range(0, 3_000, 17)
    assert [one.read(t) for t in ticks] == [again.read(t) for t in ticks]
    assert [one.read(t) for t in ticks] != [other.read(t) for t in ticks]
    assert {one.activity(spell * SPELL) for spell in range(40)} == set(range(len(ACTIVITIES)))


def test_at_rest_a_reading_is_gravity_and_little_else() -> None:
    sensor = Accelerometer(3)
    rest = [sensor.read(t) for t in range(40 * SPELL) if sensor.activity(t) == 0]
    np.testing.assert_allclose(np.mean(rest, axis=0)[1:], [0.0, 1.0], atol=0.02)
    assert np.std(rest, axis=0).max() < 0.06


def test_what_one_person_does_can_be_learned() -> None:
    trainer = task.trainer(DeviceInfo(seed=3))
    manifest = task.model()
    assert manifest.schema.parameters == 16_723
    assert 1_000_000 <= big.model().schema.parameters <= 1_010_000
    stop = lambda: False  # noqa: E731 - as short as it can be
    result = trainer.train(
        Model(0, manifest.complete()), Plan(local_epochs=8, learning_rate=0.05), stop=stop
    )
    before = trainer.evaluate(Model(0, manifest.tensors), Plan(), stop=stop)
    after = trainer.evaluate(Model(0, result.tensors), Plan(), stop=stop)
    assert after.loss < 0.7 * before.loss


def test_a_device_s_trainer_sees_the_app_s_own_store(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.sqlite", FIELDS) as store:
        gaits = Gaits(5, store)
        trainer = gaits.trainer(DeviceInfo())
        model = Model(0, gaits.model().tensors)
        assert trainer.train(model, Plan(), stop=lambda: False).num_examples == 0
        for x, y in zip(*windows(1, 20), strict=True):
            store.add(x, y)
        assert 0 < trainer.train(model, Plan(), stop=lambda: False).num_examples <= 20
        assert not isinstance(trainer, NumpyTrainer)


def test_windows_are_those_that_the_loop_would_have_had() -> None:
    x, y = windows(5, 4, start=50)
    sensor = Accelerometer(5)
    assert [x.shape, y.shape, str(x.dtype)] == [(4, FEATURES), (4,), "float32"]
    expected = np.array([sensor.read(tick) for tick in range(100, 200)], np.float32).ravel()
    np.testing.assert_array_equal(x[1], expected)


def test_a_reading_that_ends_after_the_next_is_due_is_missed() -> None:
    begun = np.array([tick * TICK_S for tick in range(5)])
    ended = np.array(begun + 0.001)
    assert _lateness(begun, ended, np.zeros(1)).missed == 0
    begun[2] += 0.0095
    ended[2] = begun[2] + 0.001
    found = _lateness(begun, ended, np.array([1e-6, 3e-6]))
    assert found.missed == 1
    assert found.gap_max_ms == pytest.approx(19.5)
    assert found.late_max_ms == pytest.approx(9.5)
    assert found.add_max_ms == pytest.approx(0.003)
    assert found.add_p50_us == pytest.approx(2.0)


@pytest.mark.slow
def test_the_loop_adds_a_window_of_what_it_read(tmp_path: Path) -> None:
    with ExampleStore(tmp_path / "examples.sqlite", FIELDS, holdout=0.0) as store:
        found = App(1, store, hop=25).run(1.4)
        x, _y = store.train()
    assert found.ticks == 140
    sensor = Accelerometer(1)
    first = np.array([sensor.read(tick) for tick in range(1, 101)], np.float32).ravel()
    np.testing.assert_array_equal(x[0], first)
    assert len(x) == 2


@pytest.mark.slow
def test_the_loop_alone_says_how_late_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ticks"] == 30
    assert said["gap_max_ms"] >= said["gap_p999_ms"] > 5.0
