"""What an app may say of a release before it sees it, and a ready-made answer.

A check is any function `check(candidate, current)`; see `ReleaseCheck`. `CheckWork` runs one on the
thread on which a device trains, never beside training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from edge_sdk.reasons import Reason
from edge_sdk.signals import Adopt
from edge_sdk.trainer import EvalResult, Model, Stop, Trainer, TrainingStoppedError
from edge_sdk.user_code import bounded, finite, offer, parameters_of, raising
from wire import Plan
from wire.messages import Reason as Word

# A check that takes longer counts as one that says no.
CHECK_S_MAX: Final = 120.0


@dataclass(frozen=True, slots=True)
class Veto:
    """A check is against a release.

    `reason` is a stable word, lower case with underscores; `metrics` are figures behind it. Both go
    to the coordinator, and so does `detail`.
    """

    reason: str
    detail: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


Verdict: TypeAlias = Veto | str | bool | None

ReleaseCheck: TypeAlias = Callable[..., Verdict]
"""`check(candidate, current)` with two models of read-only tensors, the device's personal part
among them. None or True lets the release through; False, a text that says why not, or a `Veto`
keeps it from the app, and so does whatever it raises.

It may also have parameters named `stop` (a function to be asked now and then, which raises when the
check is to end) and `trainer` (the task's own)."""


def no_worse_than(loss_margin: float = 0.0) -> ReleaseCheck:
    """A check: the release's loss on the hold-out is at most `loss_margin` above the current's.

    A device without a hold-out has nothing against any release.
    """

    def check(candidate: Model, current: Model, *, trainer: Trainer, stop: Stop) -> Veto | None:
        now = _measure(current, trainer, stop)
        new = _measure(candidate, trainer, stop)
        if new.num_examples < 1:
            return None
        # A model in use that has no loss at all is no reason to keep it.
        if math.isnan(new.loss) or new.loss > now.loss + loss_margin:
            return Veto(
                Reason.LOSS_IS_WORSE,
                f"{new.loss:.4g} instead of {now.loss:.4g}",
                {
                    "loss_candidate": new.loss,
                    "loss_current": now.loss,
                    "num_examples": float(new.num_examples),
                },
            )
        return None

    return check


def _measure(model: Model, trainer: Trainer, stop: Stop) -> EvalResult:
    """A trainer is given arrays of its own."""
    tensors = {name: array.copy() for name, array in model.tensors.items()}
    own = Model(model.version, tensors, artefact=model.artefact)
    result = trainer.evaluate(own, Plan(), stop=stop)
    stop()
    return result


@dataclass(frozen=True, slots=True)
class Checked:
    """A check has come to its end; no veto is a yes."""

    veto: Veto | None


@dataclass(frozen=True, slots=True)
class CheckFailed:
    """It was stopped, or could not begin: nothing is known, and it is tried again."""


@dataclass(slots=True)
class CheckWork:
    """One check of one release, with everything that it needs."""

    order: Adopt
    check: ReleaseCheck
    candidate: Model
    current: Model
    make_trainer: Callable[[], Trainer]
    examples_seen: int = 0
    _stopped: bool = False

    def stop(self) -> None:
        """Ask it to end; safe from any thread."""
        self._stopped = True

    @property
    def stopped(self) -> bool:
        """Whether it was asked to end."""
        return self._stopped

    def run(self) -> Checked | CheckFailed:
        """Ask the check; whatever it raises is a veto."""
        try:
            extras: dict[str, Any] = {"stop": raising(lambda: self._stopped)}
            if "trainer" in parameters_of(self.check):  # made only if need be: it loads data
                extras["trainer"] = self.make_trainer()
            veto = _veto(offer(self.check, **extras)(self.candidate, self.current))
        except TrainingStoppedError:
            return CheckFailed()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the app's own code
            short = isinstance(error, MemoryError)
            said = "" if short else f"{type(error).__name__}: {error}"
            veto = Veto(Reason.OUT_OF_MEMORY if short else Reason.CHECK_RAISED, bounded(said))
        return CheckFailed() if self._stopped else Checked(veto)


def _veto(verdict: Any) -> Veto | None:
    """What a check has answered, fit for the wire.

    Raises:
        TypeError: it is no answer.
    """
    match verdict:
        case None | True:
            return None
        case False:
            return Veto(Reason.CHECK_FAILED)
        case str():
            verdict = Veto(Reason.CHECK_FAILED, verdict)
    if not isinstance(verdict, Veto):
        raise TypeError(f"the check answered {type(verdict).__name__}")
    reason, detail = verdict.reason, verdict.detail
    try:
        msgspec.convert(reason, Word)
    except msgspec.ValidationError:
        # No word: for people then.
        reason, detail = Reason.CHECK_FAILED, f"{reason}: {detail}".rstrip(": ")
    return Veto(str(reason), bounded(detail), finite(verdict.metrics))
