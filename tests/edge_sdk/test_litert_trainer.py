"""`LiteRTTrainer` on the files that pilots ship.

These run on ai-edge-litert, and once more on tflite-runtime 2.14: `make test-tflite`.
"""

import importlib
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_sdk import (
    DeviceInfo,
    LiteRTError,
    LiteRTTrainer,
    Model,
    NumpyTrainer,
    TrainingStoppedError,
    _litert_pool,
)
from edge_sdk._litert_pool import Pool
from edge_sdk.litert_files import load_manifest
from edge_sdk.litert_trainer import _Batches
from edge_sdk.litert_trial import NoRuntimeError, interpreter_class
from edge_sdk.signals import Train, Trained
from edge_sdk.work import TrainingWork
from pilots.digits_litert import FILES
from wire import Manifest, Plan
from wire.errors import NotFiniteError, SchemaMismatchError

pytestmark = pytest.mark.slow  # loads an interpreter, and the first tries the file

MLP = load_manifest(FILES / "digits_mlp")
CNN = load_manifest(FILES / "digits_cnn")
NEXT_CHAR = load_manifest(FILES / "next_char")
NAMES = {"hidden/kernel": "w0", "hidden/bias": "b0", "scores/kernel": "w1", "scores/bias": "b1"}


def draw(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    x = chance.random((count, 64)).astype(np.float32)
    return x, (x[:, 0] * 9.99).astype(np.int64)


X, Y = draw(1, 107)
HELD = draw(2, 45)


def never() -> bool:
    return False


def trainer(data: Any = (X, Y), **options: Any) -> LiteRTTrainer:
    return LiteRTTrainer(MLP, data, **({"holdout": HELD} | options))


def model(manifest: Manifest = MLP, kernel: np.ndarray | None = None) -> Model:
    changed = {} if kernel is None else {"hidden/kernel": kernel}
    return Model(0, {name: array.copy() for name, array in manifest.tensors.items()} | changed)


def numpys(tensors: dict[str, np.ndarray]) -> Model:
    return Model(0, {NAMES[name]: array.copy() for name, array in tensors.items()})


@pytest.mark.parametrize(("batch", "mu"), [(16, 0.0), (10, 0.0), (1, 0.0), (10, 0.3)])
def test_it_trains_as_the_trainer_in_numpy_does(batch: int, mu: float) -> None:
    """Same start, order and rate: the same model but for rounding; smaller batches are padded."""
    plan = Plan(local_epochs=3, batch=batch, learning_rate=0.2, seed=9, proximal_mu=mu)
    expected = NumpyTrainer(X, Y, seed=5).train(numpys(MLP.tensors), plan, stop=never)
    result = trainer(seed=5).train(model(), plan, stop=never)
    assert result.num_examples == expected.num_examples
    for name, theirs in NAMES.items():
        np.testing.assert_allclose(result.tensors[name], expected.tensors[theirs], atol=2e-5)
    assert result.metrics["train_loss"] == pytest.approx(expected.metrics["train_loss"], 1e-4)


def test_it_evaluates_as_the_trainer_in_numpy_does() -> None:
    expected = NumpyTrainer(X, Y, holdout=HELD).evaluate(numpys(MLP.tensors), Plan(), stop=never)
    measured = trainer().evaluate(model(), Plan(), stop=never)
    assert measured.num_examples == 45
    assert measured.loss == pytest.approx(expected.loss, 1e-5)
    assert measured.metrics == pytest.approx(expected.metrics)


def test_a_batch_larger_than_the_file_s_is_refused_and_not_cut_up() -> None:
    with pytest.raises(LiteRTError, match=r"the plan's batch is 17, the file's 16"):
        trainer().train(model(), Plan(batch=17), stop=never)


def test_images_and_ids_train_too() -> None:
    plan = Plan(local_epochs=4, batch=8, learning_rate=0.1)
    images = LiteRTTrainer(CNN, (X.reshape(-1, 8, 8, 1), Y))
    ids = np.random.default_rng(3).integers(0, 64, (50, 16))
    texts = LiteRTTrainer(NEXT_CHAR, (ids, ids[:, -1]), holdout=(ids, ids[:, -1]))
    for one, manifest in ((images, CNN), (texts, NEXT_CHAR)):
        first = one.train(model(manifest), plan, stop=never)
        second = one.train(Model(1, first.tensors), plan, stop=never)
        assert second.metrics["train_loss"] < first.metrics["train_loss"]
    assert texts.evaluate(model(NEXT_CHAR), plan, stop=never).num_examples == 50


def test_the_same_seeds_make_the_same_bits_and_others_do_not() -> None:
    def run(seed: int, plan_seed: int) -> bytes:
        result = trainer(seed=seed).train(model(), Plan(seed=plan_seed), stop=never)
        return result.tensors["hidden/kernel"].tobytes()

    assert run(1, 1) == run(1, 1)
    assert len({run(1, 1), run(2, 1), run(1, 2)}) == 3


def test_a_gradient_is_no_longer_than_asked() -> None:
    """One step of plain SGD moves rate times the gradient."""
    plan = Plan(batch=16, learning_rate=0.5)
    for bound in (0.0, 0.01):
        tensors = (
            trainer((X[:16], Y[:16]), gradient_norm_max=bound)
            .train(model(), plan, stop=never)
            .tensors
        )
        moved = np.sqrt(
            sum(float(np.square(tensors[n] - MLP.tensors[n]).sum()) for n in MLP.tensors)
        )
        assert moved > 0.1 if bound == 0.0 else moved == pytest.approx(0.5 * bound, 1e-3)


@pytest.mark.parametrize("bound", [float("nan"), float("inf"), -1.0, 1e39, 1e-50])
def test_a_bound_that_float32_does_not_hold_is_refused_and_does_not_become_none(
    bound: float,
) -> None:
    with pytest.raises(LiteRTError, match="gradient_norm_max is "):
        trainer(gradient_norm_max=bound)


def test_a_bound_at_either_end_still_trains() -> None:
    for bound in (1e-18, 1e18):
        tensors = trainer(gradient_norm_max=bound).train(model(), Plan(), stop=never).tensors
        assert all(np.isfinite(array).all() for array in tensors.values())


def test_stop_is_asked_between_batches() -> None:
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(TrainingStoppedError):
        trainer().train(model(), Plan(batch=10), stop=stop)
    assert len(asked) == 4
    with pytest.raises(TrainingStoppedError):
        trainer().evaluate(model(), Plan(), stop=lambda: True)


def test_without_examples_there_is_nothing_to_train_or_measure() -> None:
    nothing = trainer(lambda: ((X[:0], Y[:0]), ()), holdout=None)
    assert nothing.train(model(), Plan(), stop=never).num_examples == 0
    assert nothing.evaluate(model(), Plan(), stop=never).num_examples == 0
    assert trainer(lambda: ((), ())).train(model(), Plan(), stop=never).num_examples == 0


BAD_EXAMPLES = {
    "shape": ((X[:, :63], Y), r"x is \[107, 63\]: the file takes \[n, 64\]"),
    "labels of another rank": ((X, Y[:, None]), r"y is \[107, 1\]: the file takes \[n, \]"),
    "label too large": ((X, Y + 1), r"y has 1 to 10: the file takes 0 to 9"),
    "label below 0": ((X, Y - 1), r"y has -1 to 8: the file takes 0 to 9"),
    "label past int32": ((X, Y + 2**32), r"y has \d+ to \d+: the file takes"),
    "label of uint64": ((X, np.full(107, 2**64 - 1, np.uint64)), r"the file takes 0 to 9"),
    "labels that are real": ((X, Y + 0.5), r"y is float64: the file takes whole numbers below 10"),
    "NaN": ((np.where(X > 0.99, np.nan, X), Y), r"x has values that are not finite"),
    "past float32": ((X.astype(np.float64) * 1e300, Y), r"x has values that are not finite"),
    "text": ((X.astype(str), Y), r"x is <U\d+: the file takes real numbers"),
    "no labels": ((X,), r"the data are 1 arrays, not x and y"),
}


@pytest.mark.parametrize("what", BAD_EXAMPLES)
def test_examples_that_the_file_does_not_take_are_refused(what: str) -> None:
    examples, text = BAD_EXAMPLES[what]
    with pytest.raises(LiteRTError, match=text):
        trainer(examples).train(model(), Plan(), stop=never)
    with pytest.raises(LiteRTError, match=text):
        trainer((), holdout=examples).evaluate(model(), Plan(), stop=never)


def test_answers_of_a_sigmoid_are_from_0_to_1() -> None:
    """The file computes what is asked: beyond 1 the loss has no bottom."""
    x = np.zeros((3, 2), np.float32)
    assert MLP.artefact is not None
    info = msgspec.structs.replace(
        MLP.artefact.info, loss="sigmoid", x_shape=(2,), y_shape=(1,), y_dtype="float32", classes=0
    )
    order = np.arange(3)
    for good in ([[0.0], [0.5], [1.0]], [[False], [True], [True]]):
        list(_Batches(info, (x, np.array(good)), 2).blocks(order))
    for bad in ([[0.0], [2.0], [1.0]], [[-1], [1], [0]]):
        with pytest.raises(LiteRTError, match=r"y has (0 to 2|-1 to 1): the file takes 0 to 1"):
            list(_Batches(info, (x, np.array(bad)), 2).blocks(order))


def test_ids_that_the_table_does_not_have_are_refused() -> None:
    ids = np.full((20, 16), 64)
    with pytest.raises(LiteRTError, match=r"x has 64 to 64: the file takes 0 to 63"):
        LiteRTTrainer(NEXT_CHAR, (ids, ids[:, 0])).train(model(NEXT_CHAR), Plan(), stop=never)


BAD_TENSORS: dict[str, Any] = {
    "same count, other shape": MLP.tensors["hidden/kernel"].reshape(200, 64),
    "too large": np.zeros((640, 2000), np.float32),
    "float64": MLP.tensors["hidden/kernel"].astype(np.float64),
    "NaN": np.full((64, 200), np.nan, np.float32),
}


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_model_of_other_tensors_never_reaches_the_interpreter(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = trainer()
    reached: list[str] = []
    monkeypatch.setattr(
        "edge_sdk._litert_pool.Opened.runner", lambda _self, name: reached.append(name)
    )
    wrong = model(kernel=BAD_TENSORS[what])
    with pytest.raises((SchemaMismatchError, NotFiniteError), match="hidden/kernel"):
        one.train(wrong, Plan(), stop=never)
    with pytest.raises((SchemaMismatchError, NotFiniteError), match="hidden/kernel"):
        one.evaluate(wrong, Plan(), stop=never)
    assert reached == []


def test_tensors_that_are_not_contiguous_or_read_only_are_taken() -> None:
    turned = np.asfortranarray(MLP.tensors["hidden/kernel"])
    turned.flags.writeable = False
    plan = Plan(batch=16)
    expected = trainer().train(model(), plan, stop=never)
    result = trainer().train(model(kernel=turned), plan, stop=never)
    np.testing.assert_array_equal(
        result.tensors["scores/kernel"], expected.tensors["scores/kernel"]
    )


def test_training_that_diverges_is_a_typed_error() -> None:
    with pytest.raises(NotFiniteError, match=r"at a learning rate of 1e\+18"):
        trainer().train(model(), Plan(learning_rate=1e18, local_epochs=9), stop=never)


def test_an_update_keeps_the_clip_and_is_the_file_s_tensors() -> None:
    order = Train(
        round=1,
        update_id=bytes(16),
        base_version=0,
        plan=Plan(local_epochs=4, learning_rate=0.5, clip_norm=0.25),
        codec="raw",
        chunk_bytes_max=4096,
    )
    work = TrainingWork(order, MLP, dict(MLP.tensors), {}, trainer)
    event = work.run()
    assert isinstance(event, Trained), event
    assert event.sealed.num_examples == 107
    assert "base_accuracy" in event.sealed.metrics


@pytest.fixture
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    own = Pool(idle_max=2)
    monkeypatch.setattr(_litert_pool, "pool", own)
    yield own
    own.clear()


def test_many_devices_train_on_one_interpreter(own_pool: Pool) -> None:
    """What one device left in it is nothing to the next."""
    alone = trainer(seed=3).train(model(), Plan(proximal_mu=0.1), stop=never)
    for seed in range(5):
        again = trainer(seed=seed).train(model(), Plan(proximal_mu=0.1), stop=never)
        assert own_pool.idle == 1
        if seed == 3:
            for name, array in alone.tensors.items():
                np.testing.assert_array_equal(again.tensors[name], array)


def test_threads_never_share_one(own_pool: Pool) -> None:
    expected = {
        seed: trainer(seed=seed).train(model(), Plan(), stop=never).tensors for seed in range(6)
    }
    found: dict[int, Any] = {}

    def work(seed: int) -> None:
        found[seed] = trainer(seed=seed).train(model(), Plan(), stop=never).tensors

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, tensors in expected.items():
        for name, array in tensors.items():
            np.testing.assert_array_equal(found[seed][name], array)
    assert own_pool.idle <= 2


def test_the_longest_unused_go_first_and_one_that_failed_does_not_come_back() -> None:
    own = Pool(idle_max=2)
    mlp, cnn, text = (m.artefact for m in (MLP, CNN, NEXT_CHAR))
    assert mlp is not None
    assert cnn is not None
    assert text is not None
    for artefact in (mlp, cnn, text):
        with own.lent(artefact):
            pass
    assert own.idle == 2
    with own.lent(cnn) as again, own.lent(cnn) as other:
        assert again is not other
    with pytest.raises(TrainingStoppedError), own.lent(text):
        raise TrainingStoppedError("in the middle")
    assert own.idle == 2
    own.clear()


def test_without_an_interpreter_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(NoRuntimeError, match=r"pip install 'potluck\[litert\]'"):
        interpreter_class()

    def too_new(name: str) -> Any:
        if name.startswith("ai_edge"):
            raise ModuleNotFoundError(name)
        return pytest

    monkeypatch.setattr(importlib, "import_module", too_new)
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(NoRuntimeError, match=r"needs NumPy 1: pip install 'potluck\[tflite\]'"):
        interpreter_class()


def test_a_manifest_without_a_file_is_refused() -> None:
    with pytest.raises(LiteRTError, match="the manifest has no"):
        LiteRTTrainer(NumpyTrainer.manifest(6, 2), (X, Y))
    with pytest.raises(LiteRTError, match="the manifest has no"):
        LiteRTTrainer(DeviceInfo().manifest, (X, Y))
