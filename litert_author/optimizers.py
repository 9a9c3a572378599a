"""What a step makes of a gradient. The learning rate is an input of every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from litert_author import ops
from litert_author.errors import AuthorError
from litert_author.graph import Graph, Value

# A parameter, its gradient.
Trained = tuple[Value, Value]
# A variable, its value after the step.
Assigned = tuple[Value, Value]


@dataclass(frozen=True)
class Optimizer:
    """A rule for a step.

    `step(graph, trained, lr)` gives the new value of every parameter and of every slot; slots are
    variables of their own that begin at zero.
    """

    kind: str
    step: Callable[[Graph, Sequence[Trained], Value], list[Assigned]]
    # The learning rate of the probe, where a gradient's size says nothing about the step's.
    probe_rate: float | None = None


def sgd() -> Optimizer:
    """P' = p - lr g."""

    def step(_graph: Graph, trained: Sequence[Trained], lr: Value) -> list[Assigned]:
        return [(p, p - g * lr) for p, g in trained]

    return Optimizer("sgd", step)


def momentum(beta: float = 0.9) -> Optimizer:
    """V' = beta v + g, p' = p - lr v': Polyak 1964, as PyTorch has it.

    Raises:
        AuthorError: beta is not in [0, 1).
    """
    _fraction("momentum", beta=beta)

    def step(graph: Graph, trained: Sequence[Trained], lr: Value) -> list[Assigned]:
        assigned = []
        for p, g in trained:
            v = graph.source("parameter", f"momentum/{p.name}", p.shape)
            new = v * beta + g
            assigned += [(v, new), (p, p - new * lr)]
        return assigned

    return Optimizer("momentum", step)


def adam(beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-7) -> Optimizer:
    """M' = b1 m + (1 - b1) g, v' = b2 v + (1 - b2) g^2, p' = p - lr m^ / (sqrt(v^) + epsilon).

    Kingma and Ba 2015, algorithm 1, with m^ = m / (1 - b1^t). The slots c1, c2 hold 1 - b^t itself,
    by c' = b c + (1 - b): at first 1 - b^t would cancel in float32.

    Raises:
        AuthorError: a beta is not in [0, 1), or epsilon is not positive.
    """
    _fraction("adam", beta1=beta1, beta2=beta2)
    if not epsilon > 0.0:
        raise AuthorError(f"adam: epsilon is positive, not {epsilon}")

    def step(graph: Graph, trained: Sequence[Trained], lr: Value) -> list[Assigned]:
        c1 = graph.source("parameter", "adam_c1", ())
        c2 = graph.source("parameter", "adam_c2", ())
        new1, new2 = c1 * beta1 + (1.0 - beta1), c2 * beta2 + (1.0 - beta2)
        root = ops.sqrt(new2)
        rate, least = lr * root / new1, root * epsilon
        assigned = [(c1, new1), (c2, new2)]
        for p, g in trained:
            m = graph.source("parameter", f"adam_m/{p.name}", p.shape)
            v = graph.source("parameter", f"adam_v/{p.name}", p.shape)
            new_m = m * beta1 + g * (1.0 - beta1)
            new_v = v * beta2 + ops.square(g) * (1.0 - beta2)
            assigned += [
                (m, new_m),
                (v, new_v),
                (p, p - new_m / (ops.sqrt(new_v) + least) * rate),
            ]
        return assigned

    return Optimizer("adam", step, 0.01)


def _fraction(kind: str, **betas: float) -> None:
    for name, beta in betas.items():
        if not 0.0 <= beta < 1.0:
            raise AuthorError(f"{kind}: {name} is in [0, 1), not {beta}")
