import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.outbox import Outbox, under_way_max
from edge_sdk.signals import SendChunks
from wire import limits

UPDATE = b"u" * 16


def order(received: bytes = b"", chunk_bytes: int = 10) -> SendChunks:
    return SendChunks(UPDATE, received, chunk_bytes)


def taken(outbox: Outbox, count: int = 1_000) -> list[int]:
    found: list[int] = []
    while outbox.waits and len(found) < count:
        found.append(outbox.take())
    return found


def test_what_is_missing_goes_out_once_and_in_order() -> None:
    outbox = Outbox()
    outbox.begin(order(b"\x05"), 95)
    assert taken(outbox) == [1, 3, 4, 5, 6, 7, 8, 9]
    assert not outbox.waits
    with pytest.raises(IndexError):
        outbox.take()


def test_an_answer_does_not_send_again_what_left_after_the_question() -> None:
    outbox = Outbox()
    outbox.offered()
    outbox.begin(order(), 100)
    assert taken(outbox, 4) == [0, 1, 2, 3]
    outbox.offered()  # asked in mid-upload: 0 and 1 have arrived by then, 2 and 3 have not
    assert taken(outbox, 2) == [4, 5]
    outbox.begin(order(b"\x03"), 100)
    assert taken(outbox) == [2, 3, 6, 7, 8, 9]


def test_after_a_broken_link_the_answer_says_all() -> None:
    outbox = Outbox()
    outbox.begin(order(), 100)
    taken(outbox, 4)
    outbox.link_lost()
    assert not outbox.waits
    outbox.offered()
    outbox.begin(order(b"\x03"), 100)
    assert taken(outbox) == [2, 3, 4, 5, 6, 7, 8, 9]


def test_other_chunks_of_the_same_update_are_other_chunks() -> None:
    outbox = Outbox()
    outbox.begin(order(), 100)
    taken(outbox, 4)
    outbox.begin(order(chunk_bytes=50), 100)
    assert taken(outbox) == [0, 1]


def test_what_is_stored_is_not_sent() -> None:
    outbox = Outbox()
    outbox.begin(order(), 100)
    outbox.done(b"x" * 16)
    assert outbox.waits
    outbox.done(UPDATE)
    assert not outbox.waits


@given(st.integers(1, limits.CHUNKS_PER_TRANSFER_MAX))
def test_a_link_that_breaks_costs_a_twelfth_of_a_large_update(count: int) -> None:
    most = under_way_max(count)
    assert 1 <= most <= limits.CHUNKS_IN_FLIGHT_MAX
    assert most <= 2 or 12 * most <= count
