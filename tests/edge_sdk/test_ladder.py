import math

from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.ladder import ROUND_BYTES, Costs, Room, Rung, allowed, least_payload_bytes, uplink
from edge_sdk.reasons import Reason
from edge_sdk.signals import Spent

AMOUNTS = st.one_of(st.floats(0.0, 1e6), st.just(math.inf))
ROOMS = st.builds(Room, AMOUNTS, AMOUNTS, AMOUNTS)
COSTS = st.builds(
    lambda work, share, fetch, values, head: Costs(
        training=Spent(0, work, work / 10.0),
        evaluation=Spent(0, work * share, work * share / 10.0),
        fetch_bytes=fetch,
        values=values,
        head_values=min(head, values),
    ),
    st.floats(0.0, 1e5),
    st.floats(0.0, 1.0),
    st.integers(0, 10**5),
    st.integers(1, 10**7),
    st.integers(1, 10**4),
)
COST = Costs(
    training=Spent(0, 100.0, 10.0),
    evaluation=Spent(0, 10.0, 1.0),
    values=1_000_000,
    head_values=1_000,
)


def test_without_bounds_everything_is_done() -> None:
    assert allowed(Room(), COST) == (Rung.FULL, None)
    assert uplink(Room()) is None
    assert Room.left(Spent(), Spent(10**9, 1e9, 1e9)) == Room()


def test_each_rung_has_its_room() -> None:
    assert allowed(Room(traffic_bytes=100_000.0), COST) == (Rung.FULL, None)
    assert allowed(Room(traffic_bytes=10_000.0), COST) == (Rung.HEAD, None)
    assert allowed(Room(traffic_bytes=ROUND_BYTES), COST) == (Rung.EVALUATE, Reason.BYTES_TOO_FEW)
    assert allowed(Room(traffic_bytes=100.0), COST) == (Rung.SKIP, Reason.BYTES_TOO_FEW)
    assert allowed(Room(joules=99.0), COST) == (Rung.HEAD, None)
    assert allowed(Room(joules=33.0), COST) == (Rung.EVALUATE, Reason.ENERGY_TOO_LITTLE)
    assert allowed(Room(joules=9.0), COST) == (Rung.SKIP, Reason.ENERGY_TOO_LITTLE)
    assert allowed(Room(training_s=9.0), COST) == (Rung.HEAD, None)
    assert allowed(Room(training_s=3.0), COST) == (Rung.EVALUATE, Reason.TRAINING_TOO_SHORT)
    assert allowed(Room(training_s=0.0), COST) == (Rung.SKIP, Reason.TRAINING_TOO_SHORT)


@given(ROOMS, ROOMS, COSTS)
def test_more_room_never_leads_to_a_lower_rung_or_to_fewer_bytes(
    one: Room, other: Room, costs: Costs
) -> None:
    more = Room(
        max(one.traffic_bytes, other.traffic_bytes),
        max(one.joules, other.joules),
        max(one.training_s, other.training_s),
    )
    assert allowed(more, costs)[0] <= allowed(one, costs)[0]
    assert (uplink(more) or math.inf) >= (uplink(one) or 0)


@given(ROOMS, COSTS)
def test_what_is_allowed_fits_into_what_is_left(room: Room, costs: Costs) -> None:
    rung, short = allowed(room, costs)
    assert (short is None) == (rung < Rung.EVALUATE)
    if rung < Rung.EVALUATE:
        assert costs.training.joules <= room.joules
        assert costs.training.training_s <= room.training_s
        values = costs.values if rung is Rung.FULL else costs.head_values
        assert costs.fetch_bytes + ROUND_BYTES + least_payload_bytes(values) <= room.traffic_bytes
    most = uplink(room)
    if most:
        assert most + ROUND_BYTES <= room.traffic_bytes
