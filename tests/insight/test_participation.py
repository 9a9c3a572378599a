import pytest
from hypothesis import given
from hypothesis import strategies as st

from insight import participation_by_class

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 1_000))


def test_a_class_that_counts_half_as_often_as_it_is_there_has_a_ratio_of_a_half() -> None:
    slow, swift = participation_by_class(
        {"slow": 50, "swift": 50}, {"slow": 10, "swift": 10}, {"slow": 5, "swift": 15}
    )
    assert (slow.there, slow.invited, slow.counted, slow.ratio) == (0.5, 0.5, 0.25, 0.5)
    assert (swift.ratio, swift.invitations, swift.updates) == (1.5, 10, 15)


def test_a_class_that_was_never_there_has_no_ratio() -> None:
    (only,) = participation_by_class({}, {"a": 1}, {})
    assert (only.there, only.invited, only.counted, only.ratio) == (0.0, 1.0, 0.0, None)


def test_nothing_is_no_class() -> None:
    assert participation_by_class({}, {}, {}) == ()


@given(COUNTS, COUNTS, COUNTS)
def test_shares_sum_to_one_or_are_all_zero(
    there: dict[str, int], invited: dict[str, int], counted: dict[str, int]
) -> None:
    shares = participation_by_class(there, invited, counted)
    assert [share.device_class for share in shares] == sorted(
        set(there) | set(invited) | set(counted)
    )
    for name, counts in (("there", there), ("invited", invited), ("counted", counted)):
        whole = sum(getattr(share, name) for share in shares)
        assert whole == pytest.approx(1.0 if any(counts.values()) else 0.0)
