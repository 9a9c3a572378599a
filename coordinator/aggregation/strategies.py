"""From what devices have in common to the next version: strategies, composed of small parts.

A strategy is (init, accumulate, finish): `init` begins a round with what the versions before have
left, `accumulate` takes an update as it arrives, `finish` returns the change of the model and what
the next round begins with. `chain(rule, *steps)` makes one of a robust rule, which turns many
updates into one change, and of steps of a server's optimiser, which look at that change alone:

    chain(RULES["norm_clip"], yogi(0.9, 0.99, 1e-3), scale(0.01))

Steps are pairs of pure functions on arrays, as in optax. The change plays the part of a gradient
(Reddi et al. 2021, Adaptive Federated Optimization, algorithms 1 and 2).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from coordinator.aggregation.rules import NORMS_KEPT, RULES, Common, Round, Rule
from coordinator.aggregation.spool import Flat
from coordinator.signals import AggregationPlan
from quantization import Accumulator
from wire import Schema
from wire.errors import LocalProtocolError

Arrays = tuple[Flat, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the server's optimiser.

    Attributes:
        name: of its state; a step of another name does not take it up.
        init: from the number of parameters: the state before the first version.
        apply: (state, change) -> (change, state); neither argument is written to.
    """

    name: str
    init: Callable[[int], Arrays]
    apply: Callable[[Arrays, Flat], tuple[Flat, Arrays]]


def scale(factor: float) -> Step:
    """The server's learning rate."""
    by = np.float32(factor)
    return Step(
        "scale", lambda _size: (), lambda _state, change: (change if by == 1 else by * change, ())
    )


def momentum(beta: float) -> Step:
    """FedAvgM (Hsu et al. 2019, section 4.3): v <- beta v + change; the change is v."""
    kept = np.float32(beta)

    def apply(state: Arrays, change: Flat) -> tuple[Flat, Arrays]:
        velocity: Flat = kept * state[0] + change
        return velocity, (velocity,)

    return Step("momentum", lambda size: (np.zeros(size, np.float32),), apply)


def adam(beta1: float, beta2: float, tau: float) -> Step:
    """FedAdam (Reddi et al. 2021, algorithm 2): v <- beta2 v + (1 - beta2) change**2."""
    kept, rest = np.float32(beta2), np.float32(1.0 - beta2)
    return _adaptive("adam", lambda v, square: kept * v + rest * square, beta1, tau)


def yogi(beta1: float, beta2: float, tau: float) -> Step:
    """FedYogi (ibid.): v <- v - (1 - beta2) change**2 sign(v - change**2)."""
    rest = np.float32(1.0 - beta2)
    return _adaptive("yogi", lambda v, square: v - rest * square * np.sign(v - square), beta1, tau)


def _adaptive(name: str, second: Callable[[Flat, Flat], Flat], beta1: float, tau: float) -> Step:
    """Both moments: m <- beta1 m + (1 - beta1) change; the change is m / (sqrt(v) + tau).

    v begins at tau**2, the least that Reddi et al. allow (algorithm 2, initialization).
    """
    kept, rest, least = np.float32(beta1), np.float32(1.0 - beta1), np.float32(tau)

    def init(size: int) -> Arrays:
        return np.zeros(size, np.float32), np.full(size, least * least, np.float32)

    def apply(state: Arrays, change: Flat) -> tuple[Flat, Arrays]:
        first = kept * state[0] + rest * change
        v = second(state[1], change * change)
        return np.asarray(first / (np.sqrt(v) + least), np.float32), (first, v)

    return Step(name, init, apply)


# -- what is kept from version to version ----------------------------------------------------------


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    steps: tuple[str, ...]
    arrays: tuple[tuple[bytes, ...], ...]
    norms: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """What the next round begins with; it belongs to a version, and is written with it.

    Attributes:
        states: of each step, in order.
        norms: of the latest updates, oldest first.
    """

    states: tuple[Arrays, ...]
    norms: tuple[float, ...] = ()


# -- composition -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strategy:
    """(init, accumulate, finish), of a rule and steps; see the module."""

    rule: Rule
    steps: tuple[Step, ...]

    @property
    def streams(self) -> bool:
        """Whether updates are in a sum as they come."""
        return self.rule.streams

    def init(
        self, schema: Schema, kept: bytes, *, weight_cap: int, updates_max: int
    ) -> tuple[Accumulator, Memory]:
        """Begin a round.

        Args:
            schema: of the updates.
            kept: what `pack` made for the version that the round begins with; empty for none.
                What another strategy has left is not taken up.
            weight_cap: the most that an update weighs.
            updates_max: how many may come.
        """
        total = self.rule.init(schema, weight_cap, updates_max)
        return total, self.unpack(kept, schema.parameters)

    def accumulate(self, total: Accumulator, payload: bytes, weight: int, share: int) -> float:
        """Take an update, or raise and leave nothing of it; returns its norm."""
        return self.rule.accumulate(total, payload, weight, share)

    def finish(self, total: Accumulator, memory: Memory, of: Round) -> tuple[Flat, Common, Memory]:
        """The change of the model, what the rule made, and what the next round begins with."""
        common = self.rule.finish(total, of)
        change, states = common.change, []
        for step, state in zip(self.steps, memory.states, strict=True):
            change, after = step.apply(state, change)
            states.append(after)
        norms = (*memory.norms, *(member.norm for member in of.members))
        return change, common, Memory(tuple(states), norms[-NORMS_KEPT:])

    def pack(self, memory: Memory) -> bytes:
        """For the store."""
        arrays = tuple(tuple(a.astype("<f4").tobytes() for a in state) for state in memory.states)
        names = tuple(step.name for step in self.steps)
        return msgspec.msgpack.encode(_Kept(names, arrays, memory.norms))

    def unpack(self, kept: bytes, size: int) -> Memory:
        """The inverse, for a model of `size` parameters; what does not fit begins anew."""
        fresh = Memory(tuple(step.init(size) for step in self.steps))
        if not kept:
            return fresh
        read = msgspec.msgpack.decode(kept, type=_Kept)
        shapes = [[4 * len(a) for a in state] for state in fresh.states]
        if read.steps != tuple(step.name for step in self.steps) or shapes != [
            [len(data) for data in state] for state in read.arrays
        ]:
            return Memory(fresh.states, read.norms)
        states = tuple(
            tuple(np.frombuffer(data, "<f4").astype(np.float32) for data in state)
            for state in read.arrays
        )
        return Memory(states, read.norms)


def chain(rule: Rule, *steps: Step) -> Strategy:
    """The rule, then the steps in order."""
    return Strategy(rule, steps)


def strategy_of(plan: AggregationPlan) -> Strategy:
    """What a round's plan names.

    FedProx (Li et al. 2020) is on the devices: its rounds are planned with a `proximal_mu`, and
    here it is FedAvg.

    Raises:
        LocalProtocolError: it names nothing.
    """
    if plan.robust not in RULES or plan.strategy not in _STEPS:
        raise LocalProtocolError(f"no strategy {plan.strategy!r} with rule {plan.robust!r}")
    return chain(RULES[plan.robust], *_STEPS[plan.strategy](plan), scale(plan.server_learning_rate))


_STEPS: Final[dict[str, Callable[[AggregationPlan], tuple[Step, ...]]]] = {
    "fedavg": lambda _plan: (),
    "fedprox": lambda _plan: (),
    "fedavgm": lambda plan: (momentum(plan.server_momentum),),
    "fedadam": lambda plan: (adam(plan.server_momentum, plan.beta2, plan.tau),),
    "fedyogi": lambda plan: (yogi(plan.server_momentum, plan.beta2, plan.tau),),
}
