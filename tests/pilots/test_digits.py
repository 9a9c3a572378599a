import sys

import pytest

from edge_sdk import DeviceInfo, Model
from pilots.digits import _read, _shares, task
from wire import Plan


def test_the_file_is_read_without_importing_scikit_learn() -> None:
    x, y, blocks = _read()
    assert x.shape == (1797, 64)
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert sorted(set(y.tolist())) == list(range(10))
    assert len(set(blocks.tolist())) == 14
    assert "sklearn" not in sys.modules


def test_no_device_has_a_test_image() -> None:
    shares = _shares("blocks+dirichlet:0.5", 30)
    assert all((rows % 5 != 0).all() for rows in shares)


@pytest.mark.slow
def test_one_devices_share_teaches_it_something() -> None:
    trainer = task.trainer(DeviceInfo(index=0, count=3, seed=1, partition="iid"))
    model = Model(0, task.model().tensors)
    plan = Plan(local_epochs=10, learning_rate=0.2)
    trained = trainer.train(model, plan, stop=lambda: False)
    test = task.test().evaluate(Model(1, trained.tensors), plan, stop=lambda: False)
    assert test.num_examples == 360
    assert test.metrics["accuracy"] > 0.8
