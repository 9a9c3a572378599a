"""What a file is to compute, found out without opening it: the probe, by `reference` in float64."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from litert_author import reference
from litert_author.errors import AuthorError
from litert_author.graph import Array, Value
from litert_author.optimizers import Assigned
from wire.artefact import ArtefactInfo, probe_batch, probe_signs

# The first step shows the forward pass, the second the gradient, later ones the optimiser's slots.
PROBE_STEPS: Final = 4
PROBE_MU: Final = 0.5
# A first step is to take about this share of the loss away: enough to see, not enough to diverge.
_SHARE: Final = 0.1
_RATE_MAX: Final = 0.5
# Steps that make a loss larger than this, of what it is without steps, amplify rounding: a smaller
# learning rate then, a tenth each time.
_GROWTH_MAX: Final = 1.5
_TRIES: Final = 6
# Digits that learning rate and clip are rounded to; they are inputs, not results.
_DIGITS: Final = 3


@dataclass(frozen=True)
class Step:
    """A training signature: its loss, what it assigns, and the gradients before the optimiser."""

    loss: Value
    assigned: Sequence[Assigned]
    gradients: Sequence[Value]


def probe(
    info: ArtefactInfo,
    first: Mapping[str, NDArray[np.float32]],
    train: Step,
    proximal: Step,
    rate: float | None,
) -> ArtefactInfo:
    """`info` with its probe filled in.

    Args:
        info: all but the probe's figures.
        first: the parameters' first values.
        train: the plain step.
        proximal: the step with `mu` and `clip`.
        rate: the learning rate; None for one that takes a tenth of the first loss away.

    Raises:
        AuthorError: the model's first losses are not finite.
    """
    loss, norm = _start(info, first, train)
    if rate is None:
        rate = min(_RATE_MAX, _SHARE * loss / max(norm * norm, 1e-12))
        rate = _steady(info, first, train, rate)
    lr, clip = _rounded(rate), _rounded(norm / 2.0)
    rates = {"lr": np.asarray(lr)}
    losses, after = _run(info, first, train, rates)
    bounds = {"mu": np.asarray(PROBE_MU), "clip": np.asarray(clip)}
    proximal_losses, pulled = _run(info, first, proximal, rates | bounds)
    if not all(math.isfinite(found) for found in losses + proximal_losses):
        raise AuthorError(f"the model's first losses are {losses}: its first values are too large")
    filled = msgspec.structs.replace(
        info.probe,
        learning_rate=lr,
        losses=tuple(losses),
        moves=_moves(info, first, after),
        proximal_losses=tuple(proximal_losses),
        mu=PROBE_MU,
        clip=clip,
        proximal_moves=_moves(info, first, pulled),
        marks=tuple(
            float(((after[spec.name] - first[spec.name]) * probe_signs(info, number)).sum())
            for number, spec in enumerate(info.parameters)
        ),
    )
    return msgspec.structs.replace(info, probe=filled)


def _steady(info: ArtefactInfo, first: Mapping[str, Array], step: Step, rate: float) -> float:
    """A learning rate of `rate` or less, at which rounding is not amplified from step to step."""
    still, _ = _run(info, first, step, {"lr": np.asarray(0.0)})
    for _ in range(_TRIES):
        losses, _ = _run(info, first, step, {"lr": np.asarray(_rounded(rate))})
        if max(losses) <= _GROWTH_MAX * max(still):
            break
        rate /= 10.0
    return rate


def _moves(
    info: ArtefactInfo, first: Mapping[str, Array], after: Mapping[str, Array]
) -> tuple[float, ...]:
    """How far each parameter is from where it began (L2)."""
    return tuple(
        float(np.linalg.norm(after[spec.name] - first[spec.name])) for spec in info.parameters
    )


def _batch(info: ArtefactInfo, number: int) -> dict[str, Array]:
    x, y = probe_batch(info, number)
    return {"x": x, "y": y, "w": np.ones(info.batch)}


def _start(info: ArtefactInfo, first: Mapping[str, Array], train: Step) -> tuple[float, float]:
    """The first loss, and the L2 norm of its gradient."""
    given = {**first, **_batch(info, 0)}
    loss, *by = reference.evaluate([train.loss, *train.gradients], given)
    return float(loss), math.sqrt(sum(float(np.square(g).sum()) for g in by))


def _run(
    info: ArtefactInfo,
    first: Mapping[str, Array],
    step: Step,
    numbers: Mapping[str, Array],
) -> tuple[list[float], dict[str, Array]]:
    """The losses of a few steps, and all variables after them."""
    state: dict[str, Array] = dict(first)
    state |= {f"anchor/{name}": array for name, array in first.items()}
    for variable, _ in step.assigned:
        state.setdefault(variable.name, np.zeros(variable.shape))
    losses = []
    for number in range(PROBE_STEPS):
        results = [step.loss, *(value for _, value in step.assigned)]
        loss, *new = reference.evaluate(results, {**state, **_batch(info, number), **numbers})
        losses.append(float(loss))
        state |= {v.name: value for (v, _), value in zip(step.assigned, new, strict=True)}
    return losses, state


def _rounded(value: float) -> float:
    return float(f"{max(value, 1e-6):.{_DIGITS}g}")
