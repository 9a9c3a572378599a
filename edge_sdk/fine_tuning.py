"""Training the personal part alone, on the device's own examples; nothing of it is ever sent.

Federated learning with a personal head (FedPer, Arivazhagan et al. 2019, section 3): a base is
learned together, each device has a head of its own. Rounds train both; between rounds, and on a
device that takes no part, `fine_tune` trains the head on a base that is held fixed. It is the same
for tensors that are personal for another reason, such as statistics of batches (FedBN).

What is kept is never worse than before on the device's hold-out, if it has one.
"""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from edge_sdk.reasons import Reason
from edge_sdk.signals import GateClosed, GateOpened
from edge_sdk.trainer import (
    EvalResult,
    Model,
    Stop,
    Trainer,
    TrainingStoppedError,
    TrainResult,
)
from edge_sdk.user_code import blamed, bounded
from edge_sdk.work import names_of
from wire import Manifest, Plan, PotluckError, Tensors

FINE_TUNING_PLAN: Final = Plan(local_epochs=5)


class FineTuningError(PotluckError):
    """The personal part was not trained, and is as it was; the text says why.

    `reason` is a word of `edge_sdk.Reason`, or the wire's for what is wrong with a model.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        says = next((word.says for word in Reason if word == reason), "")
        said = ": ".join(text for text in (str(reason), says, detail) if text)
        super().__init__(f"the personal part was not trained: {said}")
        self.reason = str(reason)


@dataclass(frozen=True)
class FineTuned:
    """What came of it.

    `kept` is False when the hold-out says that it would be worse; then everything is as it was.
    `before` and `after` are what the hold-out says, of 0 examples where there is none.
    """

    kept: bool
    num_examples: int
    before: EvalResult
    after: EvalResult
    version: int


@dataclass(slots=True)
class FineTuneWork:
    """One such training with everything that it needs; whoever starts it waits for `done`."""

    plan: Plan
    manifest: Manifest
    model: Model
    make_trainer: Callable[[], Trainer]
    anyway: bool = False
    asked_to_stop: Stop = lambda: False
    new_personal: Tensors = field(default_factory=dict)
    result: FineTuned | FineTuningError | None = None
    done: threading.Event = field(default_factory=threading.Event)
    _stopped: bool = False

    def stop(self) -> None:
        """Ask it to end at the next batch boundary; safe from any thread."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stopped or self.asked_to_stop()

    def run(self) -> "FineTuned | FineTuningError":
        """Evaluate, train, evaluate; never raises, whatever user code does."""
        try:
            return self._run()
        except FineTuningError as error:
            return error
        except (Exception, SystemExit) as error:  # noqa: BLE001 - user code; the app goes on
            reason, detail = blamed(error)
            return FineTuningError(reason, bounded(detail))

    def end(self, result: "FineTuned | FineTuningError") -> None:
        """Let whoever waits go on."""
        self.result = result
        self.done.set()

    def _run(self) -> FineTuned:
        trainer = self.make_trainer()

        def stop() -> bool:
            return self.stopped

        before = trainer.evaluate(self._copy(), self.plan, stop=stop)
        trained = trainer.train(self._copy(), self.plan, stop=stop)
        if stop():
            raise TrainingStoppedError("stopped")
        if trained.num_examples < 1:
            raise FineTuningError(Reason.NO_EXAMPLES)
        personal = self._personal_of(trained)
        tuned = {**self.model.tensors, **personal}
        after = trainer.evaluate(self._copy(tuned), self.plan, stop=stop)
        worse = after.num_examples > 0 and not after.loss <= before.loss
        if not worse:
            self.new_personal = personal
        return FineTuned(not worse, int(trained.num_examples), before, after, self.model.version)

    def _copy(self, tensors: Tensors | None = None) -> Model:
        """A trainer is given arrays of its own, and told what to change."""
        own = {name: a.copy() for name, a in (tensors or self.model.tensors).items()}
        names = names_of(self.manifest, "personal")
        return Model(self.model.version, own, artefact=self.model.artefact, trainable=names)

    def _personal_of(self, trained: TrainResult) -> Tensors:
        """The new personal part, if nothing else has moved: it would be fit for another base.

        Raises:
            FineTuningError: the trainer has changed what it was to leave alone, or returned what
                is not the model's.
        """
        personal: Tensors = {}
        for spec in self.manifest.schema.tensors:
            if spec.name not in trained.tensors:
                continue
            new = np.asarray(trained.tensors[spec.name], np.float32)
            if new.shape != spec.shape:
                raise FineTuningError("schema_mismatch", f"{spec.name} is {list(new.shape)}")
            if spec.part == "personal":
                if not np.isfinite(new).all():
                    raise FineTuningError("not_finite", spec.name)
                personal[spec.name] = new
            elif not np.array_equal(new, self.model.tensors[spec.name]):
                raise FineTuningError(
                    Reason.TRAINER_FAILED,
                    f"it changed {spec.name}, which Model.trainable does not name",
                )
        return personal


def check_has_personal(manifest: Manifest) -> None:
    """Raise unless there is something to train.

    Raises:
        FineTuningError: no tensor is personal.
    """
    if not names_of(manifest, "personal"):
        raise FineTuningError(
            "nothing_personal", "mark tensors of the task: Manifest(..., parts={name: 'personal'})"
        )


def blame_gate(
    result: FineTuned | FineTuningError,
    work: FineTuneWork,
    allowed: GateOpened | GateClosed | None,
) -> FineTuned | FineTuningError:
    """What came of work, and of work that a closed gate has stopped, why it was closed."""
    stopped = isinstance(result, FineTuningError) and result.reason == Reason.STOPPED
    if stopped and isinstance(allowed, GateClosed) and not work.anyway:
        return FineTuningError(allowed.reason)
    return result


def watched(look: Callable[[], bool], every_s: float) -> Stop:
    """A `stop` that looks at the rules itself, not more often than so: where no loop runs."""
    looked_at_s, closed = -math.inf, False

    def stop() -> bool:
        nonlocal looked_at_s, closed
        now_s = time.monotonic()
        if not closed and now_s - looked_at_s >= every_s:
            looked_at_s, closed = now_s, look()
        return closed

    return stop
