import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sdk import EvalResult, Model, TrainingStoppedError, TrainResult
from edge_sdk.ladder import Rung
from edge_sdk.signals import Evaluate, Evaluated, Train, Trained, TrainingFailed
from edge_sdk.trainer import Stop
from edge_sdk.work import EvaluationWork, TrainingWork
from privacy import l2_norm
from quantization import CODEC_NAMES, codec_of, decode, name_of
from wire import Manifest, Plan, Tensors
from wire.limits import METRICS_MAX

SHAPES = {"w": (2, 2), "head": (3,), "fixed": (1,)}
MANIFEST = Manifest(
    {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
    parts={"head": "personal", "fixed": "frozen"},
)


class Trainer:
    """Does what the test says, with a hold-out of four."""

    def __init__(self, train: Callable[[Model, Stop], TrainResult]) -> None:
        self._train = train

    def train(self, model: Model, plan: Plan, *, stop: Stop) -> TrainResult:  # noqa: ARG002 - the Protocol's
        return self._train(model, stop)

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        return EvalResult(0.7, 4, {"accuracy": 0.5})


def work(
    train: Callable[[Model, Stop], TrainResult], *, codec: str = "raw", clip_norm: float = 0.0
) -> TrainingWork:
    order = Train(
        round=1,
        base_version=0,
        plan=Plan(clip_norm=clip_norm),
        codec=codec,
        update_id=b"u" * 16,
        chunk_bytes_max=1_000,
    )
    return TrainingWork(
        order=order,
        manifest=MANIFEST,
        base={"w": MANIFEST.tensors["w"]},
        personal={},
        make_trainer=lambda: Trainer(train),
    )


def plus(amount: float) -> Callable[[Model, Stop], TrainResult]:
    def train(model: Model, _stop: Stop) -> TrainResult:
        return TrainResult({n: t + np.float32(amount) for n, t in model.tensors.items()}, 12)

    return train


def test_what_travels_is_the_change_of_the_shared_part_alone() -> None:
    done = work(plus(0.5))
    event = done.run()
    assert isinstance(event, Trained)
    decoded = decode(done.payload, MANIFEST.schema.shared)
    assert set(decoded) == {"w"}
    np.testing.assert_array_equal(decoded["w"], np.full((2, 2), 0.5))
    np.testing.assert_array_equal(done.new_personal["head"], np.full(3, 0.5))
    assert event.sealed.payload_bytes == len(done.payload)
    assert event.sealed.num_examples == 12


def test_the_base_is_measured_before_training_and_the_figures_travel() -> None:
    event = work(plus(0.5)).run()
    assert isinstance(event, Trained)
    assert event.sealed.metrics == {"base_accuracy": 0.5, "base_loss": 0.7, "base_examples": 4.0}


def test_the_whole_delta_is_clipped() -> None:
    done = work(plus(10.0), clip_norm=1.0)
    done.run()
    assert l2_norm(decode(done.payload, MANIFEST.schema.shared)) <= 1.0


def test_tensors_that_were_not_returned_have_not_changed() -> None:
    done = work(lambda _model, _stop: TrainResult({}, 3))
    assert isinstance(done.run(), Trained)
    assert not decode(done.payload, MANIFEST.schema.shared)["w"].any()


def test_user_code_may_write_to_what_it_is_given() -> None:
    def careless(model: Model, _stop: Stop) -> TrainResult:
        for tensor in model.tensors.values():
            np.add(tensor, 1.0, out=tensor)
        return TrainResult(model.tensors, 3)

    assert isinstance(work(careless).run(), Trained)
    assert not MANIFEST.tensors["w"].any()


def raises(error: BaseException) -> Callable[[Model, Stop], TrainResult]:
    def train(_model: Model, _stop: Stop) -> TrainResult:
        raise error

    return train


def returns(tensors: dict[str, object], count: int = 3) -> Callable[[Model, Stop], TrainResult]:
    return lambda _model, _stop: TrainResult(tensors, count)  # type: ignore[arg-type] # as a user might


@pytest.mark.parametrize(
    ("train", "reason"),
    [
        (raises(ZeroDivisionError("oh")), "trainer_failed"),
        (raises(MemoryError()), "out_of_memory"),
        (raises(SystemExit(0)), "trainer_failed"),
        (raises(TrainingStoppedError("x")), "stopped"),
        (returns({"w": np.full((2, 2), np.nan)}), "not_finite"),
        (returns({"w": np.full((2, 2), 1e300)}), "not_finite"),
        (returns({"w": np.zeros((4, 1))}), "schema_mismatch"),
        (returns({"other": np.zeros(1)}), "schema_mismatch"),
        (returns({"w": "text"}), "trainer_failed"),
        (returns({"w": np.zeros((2, 2))}, count=0), "no_examples"),
        (lambda _model, _stop: None, "trainer_failed"),
    ],
)
def test_whatever_user_code_does_ends_in_a_typed_reason(
    train: Callable[[Model, Stop], TrainResult], reason: str
) -> None:
    event = work(train).run()
    assert isinstance(event, TrainingFailed)
    assert event.reason == reason


@pytest.mark.parametrize("codec", ["next_years", "ecq_sr:much", "raw:2", "auto:1:2:3", "", ":"])
def test_a_codec_that_is_not_known_here_is_declined(codec: str) -> None:
    event = work(plus(1.0), codec=codec).run()
    assert isinstance(event, TrainingFailed)
    assert event.reason == "unknown_codec"


@pytest.mark.parametrize("codec", [*CODEC_NAMES, "ecq_sr:16", "auto:0.5", "auto:0.5:900"])
def test_every_codec_of_the_house_is_taken(codec: str) -> None:
    done = work(plus(1.0), codec=codec)
    assert isinstance(done.run(), Trained)
    assert codec_of(done.payload) == name_of(codec)


def test_an_update_that_no_codec_makes_small_enough_is_declined() -> None:
    event = work(plus(1.0), codec="auto:0.5:8").run()
    assert isinstance(event, TrainingFailed)
    assert event.reason == "payload_budget"
    assert "8 are allowed" in event.detail


def test_a_stop_during_training_wins_over_its_result() -> None:
    def train(model: Model, _stop: Stop) -> TrainResult:
        running.stop()
        return TrainResult(model.tensors, 3)

    running = work(train)
    event = running.run()
    assert isinstance(event, TrainingFailed)
    assert event.reason == "stopped"


def test_metrics_are_bounded_and_finite() -> None:
    many = {f"m{number}": float(number) for number in range(100)}
    event = work(
        lambda model, _stop: TrainResult(
            model.tensors, 3, {"bad": float("nan"), "": 1.0, "x" * 99: 1.0, **many}
        )
    ).run()
    assert isinstance(event, Trained)
    assert len(event.sealed.metrics) == METRICS_MAX
    assert not {"bad", "", "x" * 99} & set(event.sealed.metrics)
    assert next(itertools.islice(event.sealed.metrics, 1)) == "base_accuracy"


LARGE = Manifest({"w": np.zeros(200, np.float32)})


def sends(
    codec: str, delta: NDArray[np.float32], residual: Tensors, *, clip_norm: float = 0.0
) -> TrainingWork:
    base = work(
        lambda _model, _stop: TrainResult({"w": delta}, 12), codec=codec, clip_norm=clip_norm
    )
    made = replace(base, manifest=LARGE, base=LARGE.tensors, residual=residual)
    assert isinstance(made.run(), Trained)
    return made


def test_what_topk_sign_leaves_out_of_one_update_is_in_the_next() -> None:
    delta = np.linspace(0.5, 1.0, 200).astype(np.float32)
    total, residual = np.zeros(200), Tensors()
    for _ in range(400):
        done = sends("topk_sign", delta, residual)
        total += decode(done.payload, LARGE.schema)["w"]
        residual = done.new_residual
    np.testing.assert_allclose(total + residual["w"], 400 * delta.astype(np.float64), rtol=1e-3)
    assert np.count_nonzero(total) == 200  # without feedback it would be the two largest, always
    assert np.abs(residual["w"]).max() < 200


def test_a_codec_without_bias_neither_adds_nor_keeps_anything() -> None:
    delta, old = np.ones(200, np.float32), {"w": np.full(200, 7.0, np.float32)}
    for codec in ("raw", "ecq_sr", "eden", "q8"):
        done = sends(codec, delta, old)
        assert done.new_residual == {}
        assert abs(float(decode(done.payload, LARGE.schema)["w"].mean()) - 1.0) < 0.5


@pytest.mark.parametrize(
    ("codec", "comes_often", "kept"),
    [("auto", True, ["w"]), ("auto", False, []), ("ecq", False, ["w"])],
)
def test_auto_leaves_nothing_for_a_next_time_that_is_far(
    codec: str, kept: list[str], *, comes_often: bool
) -> None:
    dense = np.random.Generator(np.random.Philox(1)).standard_normal(4_096).astype(np.float32)
    base = work(lambda _model, _stop: TrainResult({"w": dense}, 12), codec=codec)
    model = Manifest({"w": np.zeros(4_096, np.float32)})
    made = replace(base, manifest=model, base=model.tensors, comes_often=comes_often)
    assert isinstance(made.run(), Trained)
    assert list(made.new_residual) == kept


def test_nothing_is_fed_back_past_a_clip() -> None:
    delta, old = np.ones(200, np.float32), {"w": np.full(200, 7.0, np.float32)}
    done = sends("topk_sign", delta, old, clip_norm=0.1)
    assert done.new_residual == {}
    assert l2_norm(decode(done.payload, LARGE.schema)) <= 0.1


# -- evaluation ------------------------------------------------------------------------------------


class Judge(Trainer):
    """Only evaluates, as the test says."""

    def __init__(self, judge: Callable[[Model, Stop], EvalResult]) -> None:
        super().__init__(plus(0.0))
        self._judge = judge

    def evaluate(self, model: Model, plan: Plan, *, stop: Stop) -> EvalResult:  # noqa: ARG002 - the Protocol's
        return self._judge(model, stop)


def evaluation(judge: Callable[[Model, Stop], EvalResult]) -> EvaluationWork:
    return EvaluationWork(
        order=Evaluate(3, 5, Plan()),
        manifest=MANIFEST,
        base={"w": np.full((2, 2), 0.5, np.float32)},
        personal={"head": np.ones(3, np.float32)},
        make_trainer=lambda: Judge(judge),
    )


def test_an_evaluation_measures_the_version_with_what_is_personal_here() -> None:
    seen: list[Model] = []

    def judge(model: Model, _stop: Stop) -> EvalResult:
        seen.append(model)
        return EvalResult(0.7, 4, {"accuracy": 0.5, "odd": float("nan")})

    done = evaluation(judge)
    assert done.run() == Evaluated(3, 5, 0.7, 4, {"accuracy": 0.5})
    assert seen[0].version == 5
    assert seen[0].tensors["w"][0, 0] == 0.5
    assert seen[0].tensors["head"][0] == 1.0
    assert done.examples_seen == 2


def judge_raises(error: BaseException) -> Callable[[Model, Stop], EvalResult]:
    def judge(_model: Model, _stop: Stop) -> EvalResult:
        raise error

    return judge


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        (lambda _m, _s: EvalResult(0.5, 0), "no_examples"),
        (lambda _m, _s: EvalResult(float("inf"), 4), "not_finite"),
        (judge_raises(ValueError("boom")), "trainer_failed"),
        (judge_raises(SystemExit(1)), "trainer_failed"),
        (judge_raises(MemoryError()), "out_of_memory"),
        (judge_raises(TrainingStoppedError("stop")), "stopped"),
    ],
)
def test_an_evaluation_that_fails_says_why(
    judge: Callable[[Model, Stop], EvalResult], reason: str
) -> None:
    event = evaluation(judge).run()
    assert isinstance(event, TrainingFailed)
    assert (event.round, event.reason) == (3, reason)


def test_an_evaluation_that_was_stopped_says_nothing_of_the_model() -> None:
    work_ = evaluation(lambda _m, _s: EvalResult(0.5, 4))
    work_.stop()
    assert work_.stopped
    assert work_.run() == TrainingFailed(3, "stopped", "")


# -- the ladder ------------------------------------------------------------------------------------

LAYERS = Manifest(
    {"body": np.zeros(20_000, np.float32), "last": np.zeros(400, np.float32)}, head=("last",)
)


def ladder_work(most: int | None, *, codec: str = "ecq_sr", head: bool = True) -> TrainingWork:
    noise = np.random.Generator(np.random.Philox(1))
    changed = {
        name: noise.standard_normal(tensor.shape, np.float32)
        for name, tensor in LAYERS.tensors.items()
    }
    doing = work(lambda _model, _stop: TrainResult(changed, 12), codec=codec)
    doing.manifest = LAYERS if head else replace(LAYERS, head=())
    doing.base = dict(LAYERS.tensors)
    doing.payload_bytes_max = lambda: most
    return doing


def test_an_update_that_fits_the_owners_bytes_is_the_one_that_was_asked_for() -> None:
    free, bounded = ladder_work(None), ladder_work(10**6)
    assert isinstance(free.run(), Trained)
    event = bounded.run()
    assert isinstance(event, Trained)
    assert (bounded.payload, bounded.rung) == (free.payload, Rung.FULL)
    assert "rung" not in event.sealed.metrics


@pytest.mark.parametrize("codec", ["ecq_sr", "auto", "auto:3:9000", "ecq", "raw"])
@pytest.mark.parametrize(
    ("most", "rung"), [(800, Rung.CHEAPER), (500, Rung.CHEAPER), (300, Rung.HEAD)]
)
def test_fewer_bytes_make_a_cheaper_update_and_then_the_head_alone(
    codec: str, most: int, rung: Rung
) -> None:
    doing = ladder_work(most, codec=codec)
    event = doing.run()
    assert isinstance(event, Trained)
    assert len(doing.payload) <= most
    assert doing.rung is rung
    assert event.sealed.metrics["rung"] == float(rung)
    decoded = decode(doing.payload, LAYERS.schema.shared)
    assert decoded["last"].any()
    assert decoded["body"].any() == (rung is Rung.CHEAPER)
    if rung is Rung.HEAD:
        assert doing.new_residual == {}


@pytest.mark.parametrize("most", [0, 100])
def test_what_fits_in_no_way_is_given_up_with_a_reason(most: int) -> None:
    event = ladder_work(most).run()
    assert isinstance(event, TrainingFailed)
    assert event.reason == "payload_budget"


def test_without_a_head_there_is_no_such_rung() -> None:
    event = ladder_work(300, head=False).run()
    assert isinstance(event, TrainingFailed)
    assert event.reason == "payload_budget"


def test_a_head_that_is_all_there_is_time_for_is_trained_and_sent_alone() -> None:
    told: list[tuple[str, ...] | None] = []

    def train(model: Model, _stop: Stop) -> TrainResult:
        told.append(model.trainable)
        return TrainResult({n: a + np.float32(1.0) for n, a in model.tensors.items()}, 12)

    doing = work(train, codec="ecq")
    doing.manifest = replace(
        LAYERS,
        tensors={**LAYERS.tensors, "own": np.zeros(2, np.float32)},
        parts={"own": "personal"},
    )
    doing.base = dict(LAYERS.tensors)
    doing.head_alone = True
    event = doing.run()
    assert isinstance(event, Trained)
    assert told == [("last", "own")]
    assert event.sealed.metrics["rung"] == float(Rung.HEAD)
    decoded = decode(doing.payload, doing.manifest.schema.shared)
    assert decoded["last"].any()
    assert not decoded["body"].any()
    assert doing.new_residual == {}
    assert doing.new_personal["own"].tolist() == [1.0, 1.0]
