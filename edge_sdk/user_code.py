"""Calling functions that an app has written, and making what they say fit for the wire."""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from edge_sdk.trainer import Stop, TrainingStoppedError
from wire import limits

_DETAIL_CHARS: Final = 160


def parameters_of(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters; none for a builtin that says nothing of itself."""
    import inspect  # noqa: PLC0415 - loaded when something is trained

    try:
        return frozenset(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return frozenset()


def offer(function: Callable[..., Any], **extras: Any) -> Callable[..., Any]:
    """The function with those of `extras` bound that it asks for by name."""
    named = parameters_of(function)
    wanted = {name: value for name, value in extras.items() if name in named}
    return functools.partial(function, **wanted) if wanted else function


def raising(stop: Stop) -> Stop:
    """`stop` for a function that may ask it, and need not look at the answer.

    Calling it raises `TrainingStoppedError` when work is to end.
    """

    def ask() -> bool:
        if stop():
            raise TrainingStoppedError("stopped between two batches")
        return False

    return ask


def blamed(error: BaseException) -> tuple[str, str]:
    """The reason and the detail that a trainer is reported with which raised this."""
    reason, detail = "trainer_failed", type(error).__name__
    if isinstance(error, TrainingStoppedError):
        reason, detail = "stopped", ""
    elif isinstance(error, MemoryError):
        reason, detail = "out_of_memory", ""
    else:
        # User code, down to its words.
        with contextlib.suppress(BaseException):
            detail = f"{detail}: {error}"
    return reason, bounded(detail)


def bounded(detail: str) -> str:
    """Whatever an exception says must pass the wire: text that UTF-8 can carry, and not much."""
    return detail[:_DETAIL_CHARS].encode("utf-8", "replace").decode()


def finite(about: Mapping[str, float]) -> dict[str, float]:
    """Those figures that may go onto the wire."""
    good = {
        name: float(value)
        for name, value in about.items()
        if 0 < len(name) <= limits.NAME_CHARS_MAX and math.isfinite(value)
    }
    return dict(list(good.items())[: limits.METRICS_MAX])
