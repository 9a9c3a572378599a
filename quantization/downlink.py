"""The way down: a chain of quantized changes, each against what devices already hold.

Two states. *Exact* is the model that aggregation has made; *served* is what devices hold, and
differs from it by what quantization left out. Each change is exact - served, so that what one step
leaves out is in the next step's change: error feedback (Karimireddy et al. 2019, algorithm 1) with
one state for the whole federation, which cannot go stale, since nobody holds anything else. A codec
whose error must not be fed back leaves exact equal to served.

A device that is k versions behind gets k changes, or the model itself if that is fewer bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from quantization.auto import AutoRule
from quantization.bundle import Step, pack_bundle
from quantization.codecs import AUTO, check_spec, feeds_back, name_of
from quantization.payload import decode, encode
from wire import Schema, Tensors, limits
from wire.errors import LocalProtocolError


@dataclass(frozen=True, slots=True)
class ChainState:
    """A version as devices hold it and as it was aggregated, float32 by name."""

    version: int
    served: Tensors
    exact: Tensors


@dataclass(frozen=True, slots=True)
class CatchUp:
    """A bundle, and the version that it starts from; -1 is from nothing."""

    from_version: int
    bundle: bytes


class DownlinkChain:
    """Makes the steps of a chain; holds no state, so that whoever stores it can do so first.

    Args:
        schema: of the shared part.
        codec: a codec's name, with or without a number; `auto` is `ecq`, a step for each
            tensor, and `f16` for those of a few values.

    Raises:
        LocalProtocolError: no such codec.
    """

    def __init__(self, schema: Schema, codec: str = "auto") -> None:
        self.schema = schema
        self.codec = resolve_downlink(codec)

    def advance(self, state: ChainState, exact: Tensors, *, seed: int) -> tuple[bytes, ChainState]:
        """The step from a version to the next.

        Args:
            state: the newest version.
            exact: the next model as it was aggregated.
            seed: of the codec's noise; the version's number will do.

        Returns:
            The step's payload, and the state that it leads to.

        Raises:
            SchemaMismatchError: `exact` is no model of this schema.
            NotFiniteError: it has values that are not finite, or too far from what is served.
        """
        self.schema.check(exact)
        with np.errstate(over="ignore"):
            change = {name: exact[name] - state.served[name] for name in exact}
            payload = encode(self.codec, change, self.schema, seed=seed, rule=AutoRule(chain=True))
            step = decode(payload, self.schema)
            # One product and one sum in float32, as on every device: the same bits everywhere.
            served = {name: state.served[name] + step[name] for name in exact}
        self.schema.check(served)
        return payload, ChainState(
            state.version + 1, served, exact if feeds_back(self.codec) else served
        )

    def catch_up(
        self,
        version: int,
        have: int,
        *,
        step_of: Callable[[int], bytes | None],
        served_of: Callable[[int], Tensors | None],
    ) -> CatchUp | None:
        """The fewest bytes that bring a device to `version`.

        Args:
            version: where to.
            have: what the device holds, -1 for nothing.
            step_of: the payload that leads to a version, None when it is no longer kept.
            served_of: a version's served tensors, None likewise.

        Returns:
            A chain of steps or a snapshot; None when neither can be had.
        """
        options = []
        if 0 <= have < version <= have + limits.DELTAS_PER_BUNDLE_MAX:
            steps = [(number, step_of(number)) for number in range(have + 1, version + 1)]
            kept = tuple(Step(number, data) for number, data in steps if data is not None)
            if len(kept) == len(steps):
                options.append(CatchUp(have, pack_bundle(have, kept)))
        served = served_of(version)
        if served is not None:
            snapshot = Step(version, encode("raw", served, self.schema, seed=0))
            options.append(CatchUp(-1, pack_bundle(-1, (snapshot,))))
        return min(options, key=lambda option: len(option.bundle), default=None)


def resolve_downlink(spec: str) -> str:
    """A codec's name, with or without a number; `auto` without.

    Raises:
        LocalProtocolError: no such codec, or `auto` with numbers, which are an uplink's.
    """
    if name_of(spec) == AUTO and spec != AUTO:
        raise LocalProtocolError(f"codec {spec!r}: on the way down write auto, or ecq:STEP")
    return check_spec(spec)
