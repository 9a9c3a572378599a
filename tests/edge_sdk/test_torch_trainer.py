"""`make test-torch` runs these where PyTorch is; elsewhere they say that they were skipped."""

import importlib
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sdk import (
    DeviceInfo,
    Model,
    NumpyTrainer,
    TaskError,
    TorchTrainer,
    TrainingStoppedError,
    manifest_of,
)
from edge_sdk.signals import Train, Trained
from edge_sdk.work import TrainingWork
from quantization import decode
from wire import Manifest, Plan

try:
    import torch
except ImportError:
    torch = None

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to" / "write-a-task.md"
needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed: make test-torch")


def draw(seed: int, count: int, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    x = chance.standard_normal((count, 6)).astype(np.float32)
    return x, (x[:, 0] > x[:, 1]).astype(np.int64) % classes


X, Y = draw(1, 64)
HELD = draw(2, 40)


def never() -> bool:
    return False


def dense() -> Any:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        OrderedDict(first=torch.nn.Linear(6, 5), relu=torch.nn.ReLU(), last=torch.nn.Linear(5, 2))
    )


def normalized() -> Any:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Dropout(0.2), torch.nn.Linear(5, 2)
    )


def trainer(module: Any, **options: Any) -> TorchTrainer:
    given = {"data": (X, Y), "holdout": HELD} | options
    return TorchTrainer(module, torch.nn.functional.cross_entropy, **given)


def fresh(manifest: Manifest) -> Model:
    return Model(0, {name: array.copy() for name, array in manifest.tensors.items()})


@pytest.mark.skipif(torch is not None, reason="PyTorch is installed")
def test_without_pytorch_the_error_says_what_to_install() -> None:
    with pytest.raises(TaskError, match=r"pip install 'potluck\[torch\]'"):
        TorchTrainer(None, abs, data=(X, Y))  # type: ignore[arg-type]


@needs_torch
def test_it_trains_as_the_trainer_in_numpy_does() -> None:
    """Same start, same order of examples, same rate: the same model but for rounding."""
    plan = Plan(local_epochs=3, batch=10, learning_rate=0.2, seed=9, proximal_mu=0.3)
    start = NumpyTrainer.manifest(6, 5, 2, seed=4)
    ours = NumpyTrainer(X, Y, holdout=HELD, seed=5)
    numpy_result = ours.train(fresh(start), plan, stop=never)
    names = {"first.weight": "w0", "first.bias": "b0", "last.weight": "w1", "last.bias": "b1"}
    tensors = {theirs: np.ascontiguousarray(start.tensors[own].T) for theirs, own in names.items()}
    result = trainer(dense(), seed=5).train(Model(0, tensors), plan, stop=never)
    for theirs, own in names.items():
        np.testing.assert_allclose(result.tensors[theirs].T, numpy_result.tensors[own], atol=1e-5)
    assert result.metrics["train_loss"] == pytest.approx(numpy_result.metrics["train_loss"], 1e-4)
    measured = trainer(dense()).evaluate(Model(0, result.tensors), plan, stop=never)
    expected = ours.evaluate(Model(0, numpy_result.tensors), plan, stop=never)
    assert measured.loss == pytest.approx(expected.loss, 1e-4)
    assert measured.metrics == pytest.approx(expected.metrics)


@needs_torch
def test_statistics_and_counters_are_personal_and_what_needs_no_gradient_is_frozen() -> None:
    module = normalized()
    module[0].weight.requires_grad_(requires_grad=False)
    manifest = manifest_of(module, parts={"3.bias": "personal"})
    assert dict(manifest.parts) == {
        "0.weight": "frozen",
        "0.bias": "shared",
        "1.weight": "shared",
        "1.bias": "shared",
        "1.running_mean": "personal",
        "1.running_var": "personal",
        "1.num_batches_tracked": "personal",
        "3.weight": "shared",
        "3.bias": "personal",
    }
    result = trainer(module).train(fresh(manifest), Plan(batch=16), stop=never)
    assert result.tensors["1.num_batches_tracked"] == 4.0
    assert (result.tensors["1.running_mean"] != 0.0).any()
    np.testing.assert_array_equal(result.tensors["0.weight"], manifest.tensors["0.weight"])
    again = trainer(normalized()).train(
        Model(1, result.tensors), Plan(batch=16, local_epochs=2), stop=never
    )
    assert again.tensors["1.num_batches_tracked"] == 12.0


@needs_torch
def test_the_same_seeds_make_the_same_model_and_others_another() -> None:
    manifest = manifest_of(normalized())

    def run(seed: int, plan_seed: int) -> np.ndarray:
        plan = Plan(batch=7, seed=plan_seed)
        return (
            trainer(normalized(), seed=seed)
            .train(fresh(manifest), plan, stop=never)
            .tensors["3.weight"]
        )

    torch.manual_seed(77)
    first = run(1, 1)
    torch.manual_seed(78)
    assert run(1, 1).tobytes() == first.tobytes()
    assert run(2, 1).tobytes() != first.tobytes()
    assert run(1, 2).tobytes() != first.tobytes()


@needs_torch
def test_the_process_s_own_chance_and_threads_are_as_they_were() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    one, manifest = trainer(normalized()), manifest_of(normalized())
    torch.manual_seed(5)
    one.train(fresh(manifest), Plan(), stop=never)
    one.evaluate(fresh(manifest), Plan(), stop=never)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@needs_torch
def test_stop_is_asked_between_batches() -> None:
    manifest = manifest_of(dense())
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(TrainingStoppedError):
        trainer(dense()).train(fresh(manifest), Plan(batch=5), stop=stop)
    assert len(asked) == 4
    with pytest.raises(TrainingStoppedError):
        trainer(dense()).evaluate(fresh(manifest), Plan(), stop=lambda: True)


def work(module: Any, plan: Plan, make: Callable[[], TorchTrainer]) -> TrainingWork:
    manifest = manifest_of(module)
    order = Train(
        round=1, update_id=bytes(16), base_version=0, plan=plan, codec="raw", chunk_bytes_max=4096
    )
    return TrainingWork(order, manifest, dict(manifest.tensors), {}, make)


@needs_torch
def test_an_update_keeps_the_clip_and_leaves_what_is_personal_at_home() -> None:
    plan = Plan(local_epochs=4, learning_rate=0.5, clip_norm=0.25)
    done = work(normalized(), plan, lambda: trainer(normalized()))
    event = done.run()
    assert isinstance(event, Trained), event
    shared = done.manifest.schema.shared
    delta = decode(done.payload, shared)
    norm = np.sqrt(sum(float((array.astype(np.float64) ** 2).sum()) for array in delta.values()))
    assert norm == pytest.approx(0.25, rel=1e-3)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} == set(done.new_personal)
    assert event.sealed.num_examples == 64
    assert "base_accuracy" in event.sealed.metrics


@needs_torch
def test_fedprox_pulls_towards_the_model_that_came() -> None:
    manifest = manifest_of(dense())

    def moved(mu: float) -> float:
        plan = Plan(local_epochs=20, learning_rate=0.1, proximal_mu=mu)
        tensors = trainer(dense()).train(fresh(manifest), plan, stop=never).tensors
        return sum(float(((tensors[n] - manifest.tensors[n]) ** 2).sum()) for n in tensors)

    assert moved(5.0) < 0.2 * moved(0.0)


@needs_torch
def test_tied_weights_travel_once_and_stay_tied() -> None:
    def tied() -> Any:
        torch.manual_seed(1)
        module = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
        module[1].weight = module[0].weight
        return module

    manifest = manifest_of(tied())
    assert list(manifest.tensors) == ["0.weight", "0.bias", "1.bias"]
    module = tied()
    one = TorchTrainer(module, torch.nn.functional.mse_loss, data=(X, X), holdout=(X, X))
    assert one.train(fresh(manifest), Plan(), stop=never).tensors.keys() == manifest.tensors.keys()
    assert one.evaluate(fresh(manifest), Plan(), stop=never).metrics == {}
    assert module[1].weight is module[0].weight


@needs_torch
@pytest.mark.parametrize("count", [1, 11, 21])
def test_a_last_batch_of_one_does_not_break_a_module_that_normalizes(count: int) -> None:
    manifest = manifest_of(normalized())
    one = trainer(normalized(), data=(X[:count], Y[:count]))
    if count == 1:
        with pytest.raises(ValueError, match="more than 1 value"):
            one.train(fresh(manifest), Plan(batch=10), stop=never)
        return
    assert one.train(fresh(manifest), Plan(batch=10), stop=never).num_examples == count


@needs_torch
def test_half_precision_is_carried_and_comes_back_in_its_own_dtype() -> None:
    def half() -> Any:
        return dense().to(torch.bfloat16)

    manifest = manifest_of(half())
    module = half()
    one = TorchTrainer(
        module,
        lambda output, y: torch.nn.functional.cross_entropy(output.float(), y),
        data=lambda: ((X, Y), HELD),
    )
    module.first.register_forward_pre_hook(lambda _m, inputs: (inputs[0].to(torch.bfloat16),))
    result = one.train(fresh(manifest), Plan(), stop=never)
    assert {array.dtype for array in result.tensors.values()} == {np.dtype(np.float32)}
    assert module.first.weight.dtype == torch.bfloat16


@needs_torch
def test_another_optimizer_and_no_examples() -> None:
    manifest = manifest_of(dense())
    adam = trainer(dense(), optimizer=torch.optim.Adam)
    before = adam.evaluate(fresh(manifest), Plan(), stop=never).loss
    plan = Plan(local_epochs=20, learning_rate=0.01)
    result = adam.train(fresh(manifest), plan, stop=never)
    assert adam.evaluate(Model(1, result.tensors), Plan(), stop=never).loss < before
    assert (
        trainer(dense(), data=(X[:0], Y[:0])).train(fresh(manifest), plan, stop=never).num_examples
        == 0
    )


@needs_torch
def test_the_how_to_s_task_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HOW_TO.read_text(encoding="utf-8")
    for name in ("pump", "by_torch"):
        found = re.search(
            rf"<!-- file: {name}.py -->\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
        )
        assert found
        (tmp_path / f"{name}.py").write_text(found.group(1))
    monkeypatch.syspath_prepend(tmp_path)
    task = importlib.import_module("by_torch").task
    model = fresh(task.model())
    one = task.trainer(DeviceInfo(seed=3))
    before = one.evaluate(model, Plan(), stop=never)
    result = one.train(model, Plan(local_epochs=10), stop=never)
    assert result.num_examples == 48
    assert one.evaluate(Model(0, result.tensors), Plan(), stop=never).loss < before.loss


@needs_torch
def test_a_head_alone_is_trained_and_all_else_has_no_gradient() -> None:
    torch.manual_seed(3)
    module = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    x, y = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32), np.arange(20) % 2
    trainer = TorchTrainer(module, torch.nn.functional.cross_entropy, (x, y))
    tensors = {name: a.copy() for name, a in manifest_of(module).tensors.items()}
    head = Model(0, tensors, trainable=("2.weight",))
    result = trainer.train(head, Plan(local_epochs=2), stop=lambda: False)
    assert set(result.tensors) == {"2.weight"}
    assert not np.array_equal(result.tensors["2.weight"], tensors["2.weight"])
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    np.testing.assert_array_equal(state["0.weight"], tensors["0.weight"])
    assert all(weight.requires_grad for weight in module.parameters())
