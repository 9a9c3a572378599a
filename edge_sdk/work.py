"""One piece of training, from a base model to a payload: what runs beside the session, not in it.

Or one of evaluation, which is less. `run` is called on any thread, at any time, once; it touches
nothing but its own data, and whatever user code does in there, it returns an event and never
raises.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

import quantization
from edge_sdk.ladder import Rung, least_payload_bytes
from edge_sdk.release_check import Checked, CheckFailed, CheckWork
from edge_sdk.signals import Evaluate, Evaluated, SealedUpdate, Train, Trained, TrainingFailed
from edge_sdk.trainer import EvalResult, Model, Trainer, TrainingStoppedError, TrainResult
from edge_sdk.user_code import blamed, bounded, finite
from privacy import clip_l2
from wire import LocalProtocolError, Manifest, Tensors
from wire.errors import NotFiniteError, RemoteProtocolError, SchemaMismatchError
from wire.manifest import Part

_NO_EXAMPLES: Final = "no_examples"
# A look at an example costs about a third of a training step: one pass forward instead of a forward
# and two backward ones.
_PASSES_OF_A_STEP: Final = 3
# Fed back after twenty rounds, what was left out costs more accuracy than a codec without memory.
RESIDUAL_ROUNDS_MAX: Final = 8


@dataclass(slots=True)
class TrainingWork:
    """A `Train` effect with everything that it needs.

    After `run`, `payload`, `new_personal` and `new_residual` belong to the `Trained` event that it
    returned. `residual` is what earlier updates left out, empty for none; `comes_often` says that
    what this one leaves out may hope for a next one soon. `payload_bytes_max` is what the owner's
    budget leaves for the payload, asked for when it is made; `rung` is what it came to. With
    `head_alone` nothing else of the shared part is trained.
    """

    order: Train
    manifest: Manifest
    base: Tensors
    personal: Tensors
    make_trainer: Callable[[], Trainer]
    residual: Tensors = field(default_factory=dict)
    comes_often: bool = True
    payload_bytes_max: Callable[[], int | None] = lambda: None
    head_alone: bool = False
    rung: Rung = Rung.FULL
    payload: bytes = b""
    new_personal: Tensors = field(default_factory=dict)
    new_residual: Tensors = field(default_factory=dict)
    examples_seen: int = 0
    _stopped: bool = False

    def stop(self) -> None:
        """Ask it to end at the next batch boundary; safe from any thread."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stopped

    def run(self) -> Trained | TrainingFailed:
        """Evaluate the base on the hold-out, train, clip, encode."""
        try:
            return self._run()
        except quantization.PayloadBudgetError as error:
            reason, detail = "payload_budget", str(error)
        except RemoteProtocolError as error:
            # The trainer returned what the wire would refuse: the wire's own word for it.
            reason, detail = error.reason, str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code; the app goes on
            reason, detail = blamed(error)
        return _failed(self.order.round, reason, detail)

    def _run(self) -> Trained | TrainingFailed:
        order = self.order
        try:
            codec = quantization.check_spec(order.codec)
        except LocalProtocolError:
            return TrainingFailed(order.round, "unknown_codec", bounded(order.codec))
        trainer = self.make_trainer()
        measured = trainer.evaluate(self._model(), order.plan, stop=lambda: self._stopped)
        result = trainer.train(self._model(), order.plan, stop=lambda: self._stopped)
        if self._stopped:
            raise TrainingStoppedError("stopped")
        if result.num_examples < 1:
            return TrainingFailed(order.round, _NO_EXAMPLES, "there is nothing to train on")
        delta = self._delta(result)
        if order.plan.clip_norm > 0.0:
            delta = clip_l2(delta, order.plan.clip_norm)
        if self.head_alone:
            self.rung, delta = Rung.HEAD, self._head_of(delta)
        self._encode_within(codec, delta)
        self.examples_seen = result.num_examples * order.plan.local_epochs
        sealed = SealedUpdate(
            update_id=order.update_id,
            round=order.round,
            base_version=order.base_version,
            payload_bytes=len(self.payload),
            payload_digest=hashlib.sha256(self.payload).digest(),
            num_examples=int(result.num_examples),
            chunk_bytes_max=order.chunk_bytes_max,
            metrics=_metrics(measured, result, self.rung),
        )
        return Trained(sealed)

    def _encode_within(self, codec: str, delta: Tensors) -> None:
        """As the invitation says; if the owner's bytes do not do, with more error, or the head.

        Raises:
            PayloadBudgetError: not even the head fits.
        """
        most = self.payload_bytes_max()
        if most is None:
            self._encode(codec, delta)
            return
        try:
            self._encode(codec, delta)
        except quantization.PayloadBudgetError:
            pass  # the federation's own bound, which is smaller for whoever sends the head alone
        else:
            if len(self.payload) <= most:
                return
        self.payload, self.new_residual = b"", {}
        schema, head = self.manifest.schema.shared, frozenset(self.manifest.head)
        rungs = [] if self.head_alone else [(Rung.CHEAPER, delta, schema.parameters)]
        if head:
            values = sum(delta[name].size for name in head)
            rungs.append((Rung.HEAD, self._head_of(delta), values))
        for rung, tensors, values in rungs:
            if most < least_payload_bytes(values):
                continue
            self.rung = rung
            with contextlib.suppress(quantization.PayloadBudgetError):
                self._encode(quantization.narrowed(codec, most), tensors)
                return
        raise quantization.PayloadBudgetError(
            f"the owner's budget leaves {most} bytes for the update"
        )

    def _head_of(self, delta: Tensors) -> Tensors:
        """The head's change alone.

        Zeros cost next to nothing. The others' change is no residual: it would be too old.
        """
        head = self.manifest.head
        return {name: d if name in head else np.zeros_like(d) for name, d in delta.items()}

    def _encode(self, codec: str, delta: Tensors) -> None:
        """Make the payload, with feedback where there may be any."""
        seed = int.from_bytes(self.order.update_id[:8], "little")
        schema = self.manifest.schema.shared
        # With a clip nothing is fed back: what is sent would be longer than the clip allows.
        named = quantization.name_of(codec) != quantization.AUTO
        keeps = quantization.keeps_residual(codec) and (self.comes_often or named)
        if keeps and self.rung is not Rung.HEAD and self.order.plan.clip_norm == 0.0:
            self.payload, self.new_residual = quantization.encode_with_feedback(
                codec, delta, self.residual, schema, seed=seed
            )
        else:
            self.payload = quantization.encode(codec, delta, schema, seed=seed)

    def _model(self) -> Model:
        """Fresh arrays each time: what user code does to them stays with it."""
        whole = self.manifest.complete(self.base, self.personal)
        tensors = {name: array.copy() for name, array in whole.items()}
        trainable = (*self.manifest.head, *names_of(self.manifest, "personal"))
        return Model(
            self.order.base_version,
            tensors,
            artefact=self.manifest.artefact,
            trainable=trainable if self.head_alone else None,
        )

    def _delta(self, result: TrainResult) -> Tensors:
        """What training changed of the shared part; the personal part is put aside."""
        delta: Tensors = {}
        unknown = sorted(set(result.tensors) - set(self.manifest.tensors))
        if unknown:
            raise SchemaMismatchError(f"the trainer returned tensors that are not there: {unknown}")
        for spec in self.manifest.schema.tensors:
            if spec.name not in result.tensors:
                if spec.part == "shared":
                    delta[spec.name] = np.zeros(spec.shape, np.float32)
                continue
            with np.errstate(over="ignore"):  # what leaves float32 is infinite, and found below
                new = np.asarray(result.tensors[spec.name], np.float32)
            if new.shape != spec.shape:
                raise SchemaMismatchError(
                    f"the trainer returned {spec.name} as {list(new.shape)}, not {list(spec.shape)}"
                )
            if not np.isfinite(new).all():
                raise NotFiniteError(f"the trainer returned {spec.name} with NaN or infinity")
            if spec.part == "shared":
                delta[spec.name] = new - self.base[spec.name]
            elif spec.part == "personal":
                self.new_personal[spec.name] = new
        return delta


def names_of(manifest: Manifest, part: Part) -> tuple[str, ...]:
    """The tensors of one part, in order."""
    return tuple(spec.name for spec in manifest.schema.tensors if spec.part == part)


def _metrics(measured: EvalResult, result: TrainResult, rung: Rung) -> dict[str, float]:
    """What goes to the coordinator about the base model and the training; finite and bounded.

    `rung` is among them where it is not the first: see `edge_sdk.ladder`.
    """
    about: dict[str, float] = {}
    if measured.num_examples > 0:
        about = {f"base_{name}": value for name, value in measured.metrics.items()}
        about |= {"base_loss": measured.loss, "base_examples": measured.num_examples}
    if rung is not Rung.FULL:
        about["rung"] = float(rung)
    return finite(about | result.metrics)


def _failed(round_number: int, reason: str, detail: str) -> TrainingFailed:
    return TrainingFailed(round_number, reason, bounded(detail))


@dataclass(slots=True)
class EvaluationWork:
    """An `Evaluate` effect with everything that it needs."""

    order: Evaluate
    manifest: Manifest
    base: Tensors
    personal: Tensors
    make_trainer: Callable[[], Trainer]
    examples_seen: int = 0
    _stopped: bool = False

    def stop(self) -> None:
        """Ask it to end at the next batch boundary; safe from any thread."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stopped

    def run(self) -> Evaluated | TrainingFailed:
        """Evaluate the version on the hold-out."""
        try:
            return self._run()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code; the app goes on
            return _failed(self.order.round, *blamed(error))

    def _run(self) -> Evaluated | TrainingFailed:
        order = self.order
        whole = self.manifest.complete(self.base, self.personal)
        tensors = {name: array.copy() for name, array in whole.items()}
        model = Model(order.version, tensors, artefact=self.manifest.artefact)
        found = self.make_trainer().evaluate(model, order.plan, stop=lambda: self._stopped)
        if self._stopped:
            raise TrainingStoppedError("stopped")
        num_examples, loss = int(found.num_examples), float(found.loss)
        if num_examples < 1:
            return TrainingFailed(order.round, _NO_EXAMPLES, "there is no hold-out")
        if not math.isfinite(loss):
            return TrainingFailed(order.round, NotFiniteError.reason, f"a loss of {loss}")
        self.examples_seen = -(-num_examples // _PASSES_OF_A_STEP)
        return Evaluated(order.round, order.version, loss, num_examples, finite(found.metrics))


Work = TrainingWork | EvaluationWork | CheckWork
WorkDone = Trained | Evaluated | TrainingFailed | Checked | CheckFailed
StartWork = Callable[[Work], None]


def round_of(work: Work) -> int:
    """The round that work is for, 0 if it is for none."""
    return 0 if isinstance(work, CheckWork) else work.order.round


def gave_up(work: Work, reason: str, detail: str = "") -> TrainingFailed | CheckFailed:
    """What came of work that nobody has begun, or that came to no end of its own."""
    if isinstance(work, CheckWork):
        return CheckFailed()
    return _failed(work.order.round, reason, detail)
