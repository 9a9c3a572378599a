"""Bounding what one device can do to a sum: the whole update's L2 norm."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wire import Tensors
from wire.errors import LocalProtocolError, NotFiniteError


def l2_norm(tensors: Mapping[str, NDArray[np.float32]]) -> float:
    """The L2 norm over all tensors together, in float64."""
    return math.sqrt(sum(float(np.sum(np.square(t, dtype=np.float64))) for t in tensors.values()))


def clip_l2(tensors: Mapping[str, NDArray[np.float32]], clip_norm: float) -> Tensors:
    """Scale an update so that its norm is at most `clip_norm`; a smaller one is returned as is.

    x * min(1, C / ||x||_2) over the flat update (Abadi et al. 2016, algorithm 1, line 6; for a
    device's whole delta: McMahan et al. 2018, section 2).

    Args:
        tensors: the update, float32.
        clip_norm: C, above 0.

    Raises:
        LocalProtocolError: `clip_norm` is not above 0.
        NotFiniteError: the update has values that are not finite.
    """
    if not clip_norm > 0.0:
        raise LocalProtocolError(f"a clip norm of {clip_norm}")
    norm = l2_norm(tensors)
    if not math.isfinite(norm):
        raise NotFiniteError("an update with values that are not finite cannot be clipped")
    if norm <= clip_norm:
        return dict(tensors)
    # A hair below, so that float32's rounding does not lift the norm above the bound again.
    factor = clip_norm / norm * (1.0 - 1e-6)
    # In float64: the factor of an update that exploded is below float32's normal range.
    return {
        name: np.asarray(np.multiply(values, factor, dtype=np.float64), np.float32)
        for name, values in tensors.items()
    }
