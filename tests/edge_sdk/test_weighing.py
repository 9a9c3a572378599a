"""An invitation against what is left of the day, and what a head alone saves of it."""

import numpy as np

from edge_sdk.ladder import Costs, Means, Room
from edge_sdk.reasons import Reason
from edge_sdk.session import Session, start
from edge_sdk.signals import GateOpened, Spent, TurnDown
from edge_sdk.weighing import costs_of, trains_head_alone, weigh
from tests.edge_sdk.test_session import ask, idle, invite
from wire import Manifest

LAYERS = {"body": np.zeros(9_000, np.float32), "last": np.zeros(1_000, np.float32)}
WITH_HEAD = Manifest(dict(LAYERS), head=("last",))
WITHOUT = Manifest(dict(LAYERS))
TOOK = Spent(0, 0.0, 10.0)


def left(training_s: float, head: Spent = Spent()) -> Means:  # noqa: B008 - frozen
    return Means(Room(training_s=training_s), TOOK, head, Spent(0, 0.0, 1.0))


def verdict(means: Means, manifest: Manifest, session: Session | None = None) -> str:
    s = session or idle()
    said = weigh(invite(s), s, means, manifest, 0)
    return said.reason if isinstance(said, TurnDown) else "taken"


def test_a_head_is_trained_alone_when_seconds_do_for_it_and_not_for_all() -> None:
    assert [verdict(left(s), WITH_HEAD) for s in (10.0, 5.0, 3.0)] == [
        "taken",
        "taken",
        Reason.TRAINING_TOO_SHORT,
    ]
    assert [trains_head_alone(WITH_HEAD, left(s)) for s in (10.0, 5.0)] == [False, True]
    assert verdict(left(5.0), WITHOUT) == Reason.TRAINING_TOO_SHORT
    assert not trains_head_alone(WITHOUT, left(5.0))


def test_what_a_head_has_taken_counts_more_than_what_it_was_thought_to_take() -> None:
    assert verdict(left(5.0, Spent(0, 0.0, 9.0)), WITH_HEAD) == Reason.TRAINING_TOO_SHORT
    assert verdict(left(2.0, Spent(0, 0.0, 1.5)), WITH_HEAD) == "taken"


def test_before_anything_was_trained_nothing_is_known_and_all_is_tried() -> None:
    assert not trains_head_alone(WITH_HEAD, Means(Room(training_s=1.0)))
    assert Costs(values=10, head_values=2).least_training == Spent()
    assert costs_of(WITHOUT, Means()).head_values == 10_000


def test_without_budgets_or_with_a_closed_gate_nothing_is_weighed() -> None:
    closed = start(schema_digest=bytes(32), boot=1, device="d1", federation="fed")
    assert verdict(left(0.0), WITHOUT, closed) == "taken"
    assert verdict(Means(), WITHOUT) == "taken"


def test_an_evaluation_is_taken_when_a_training_would_not_be() -> None:
    s = idle()
    assert isinstance(s.gate, GateOpened)
    asked = ask(s)
    assert weigh(asked, s, left(3.0), WITHOUT, 0) is asked
    assert isinstance(weigh(asked, s, left(0.5), WITHOUT, 0), TurnDown)
