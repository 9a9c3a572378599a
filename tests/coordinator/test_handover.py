import threading

from coordinator.handover import Handover


def nothing(_now_s: float) -> None:
    """An action."""


def test_what_waits_is_bounded_in_bytes_and_in_number() -> None:
    queue = Handover(items_max=4, bytes_max=100)
    assert queue.put(nothing, size_bytes=60)
    assert not queue.put(nothing, size_bytes=60)
    assert queue.put(nothing, size_bytes=40)
    assert queue.waiting_bytes == 100
    assert queue.put(nothing)
    assert queue.put(nothing)
    assert not queue.put(nothing)
    assert len(queue) == 4


def test_one_that_is_larger_than_the_bound_waits_alone() -> None:
    queue = Handover(items_max=4, bytes_max=100)
    assert queue.put(nothing, size_bytes=1_000)
    assert not queue.put(nothing, size_bytes=1)
    assert queue.take() is nothing
    assert queue.waiting_bytes == 0


def test_they_come_out_in_order_and_whoever_waits_for_room_gets_it() -> None:
    queue = Handover(items_max=100, bytes_max=10)
    heard: list[float] = []

    def said(number: int) -> None:
        queue.put(lambda _now_s: heard.append(number), size_bytes=4, timeout_s=5.0)

    def speak() -> None:
        for number in range(50):
            said(number)

    thread = threading.Thread(target=speak)
    thread.start()
    while len(heard) < 50:
        action = queue.take(5.0)
        assert action is not None
        action(0.0)
    thread.join()
    assert heard == list(range(50))


def test_nothing_comes_of_nothing() -> None:
    assert Handover(1, 1).take(0.001) is None
