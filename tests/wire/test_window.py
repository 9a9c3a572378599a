from hypothesis import given
from hypothesis import strategies as st

from wire import limits
from wire.window import QUICK_S, SLOW_S, Window

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("taken"), st.floats(0.0, 100.0)),
        st.tuples(st.just("lost"), st.just(0.0)),
        st.tuples(st.just("allow"), st.integers(0, 100).map(float)),
    ),
    max_size=25,
)


def quick(window: Window, count: int) -> None:
    for _ in range(count):
        window.taken(QUICK_S / 2, window.size)


def test_it_grows_to_the_bound_while_acknowledgements_come_quickly() -> None:
    window = Window()
    quick(window, 100)
    assert window.size == limits.CHUNKS_IN_FLIGHT_MAX


def test_a_window_that_is_not_used_up_does_not_grow() -> None:
    window = Window()
    for _ in range(100):
        window.taken(0.01, 1)
    assert window.size == Window().size


def test_neither_quick_nor_slow_changes_nothing() -> None:
    window = Window()
    quick(window, 4)
    before = window.size
    for _ in range(100):
        window.taken((QUICK_S + SLOW_S) / 2, window.size)
    assert window.size == before


def test_one_slow_window_halves_it_once() -> None:
    window = Window()
    quick(window, 100)
    for _ in range(limits.CHUNKS_IN_FLIGHT_MAX):
        window.taken(SLOW_S + 1.0, window.size)
    assert window.size == limits.CHUNKS_IN_FLIGHT_MAX // 2
    window.taken(SLOW_S + 1.0, window.size)
    assert window.size == limits.CHUNKS_IN_FLIGHT_MAX // 4


def test_a_link_that_breaks_halves_it_and_a_slow_one_leaves_one() -> None:
    window = Window()
    quick(window, 100)
    window.lost()
    assert window.size == limits.CHUNKS_IN_FLIGHT_MAX // 2
    for _ in range(20):
        window.taken(6.0, window.size)
    assert window.size == 1


def test_it_converges_where_a_second_of_bytes_is_under_way() -> None:
    """A chunk takes 0.3 s to send: three of them are under way, and the fourth would wait."""
    window = Window()
    for _ in range(200):
        window.taken(0.3 * window.size, window.size)
    assert window.size in (3, 4)


@given(STEPS, st.integers(1, 20))
def test_it_is_one_at_least_and_what_the_server_takes_at_most(
    steps: list[tuple[str, float]], most: int
) -> None:
    window = Window()
    window.allow(most)
    for what, value in steps:
        match what:
            case "taken":
                window.taken(value, window.size)
            case "lost":
                window.lost()
            case _:
                most = int(value)
                window.allow(most)
        assert 1 <= window.size <= max(1, min(most, limits.CHUNKS_IN_FLIGHT_MAX))
