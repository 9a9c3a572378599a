import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilots.partition import PartitionError, partition

CHANCE = np.random.default_rng(3)
LABELS = CHANCE.integers(0, 10, 300)
BLOCKS = np.repeat(np.arange(6), 50)
HOWS = ("iid", "blocks", "dirichlet:0.5", "dirichlet:100", "blocks+dirichlet:0.5")


@given(how=st.sampled_from(HOWS), count=st.integers(1, 300), seed=st.integers(0, 2**40))
def test_every_row_goes_to_one_device_and_nobody_goes_without(
    how: str, count: int, seed: int
) -> None:
    shares = partition(how, LABELS, BLOCKS, count, seed)
    assert len(shares) == count
    assert all(len(rows) for rows in shares)
    assert sorted(np.concatenate(shares).tolist()) == list(range(300))


def test_a_device_of_a_block_has_rows_of_that_block_alone() -> None:
    for rows in partition("blocks+dirichlet:0.5", LABELS, BLOCKS, 12, 1):
        assert len(set(BLOCKS[rows])) == 1


def test_a_small_alpha_is_more_uneven_than_a_large_one() -> None:
    def unevenness(alpha: str) -> float:
        shares = partition(f"dirichlet:{alpha}", LABELS, BLOCKS, 10, 1)
        counts = np.array([np.bincount(LABELS[rows], minlength=10) for rows in shares])
        return float((counts / counts.sum(axis=1, keepdims=True)).std())

    assert unevenness("0.1") > unevenness("1.0") > unevenness("100")


def test_the_same_seed_gives_the_same_split() -> None:
    one, two = (partition("dirichlet:0.5", LABELS, BLOCKS, 9, 4) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("how", ["", "dirichlet", "dirichlet:0", "dirichlet:x", "x+dirichlet:1"])
def test_what_is_not_a_partition_is_refused(how: str) -> None:
    with pytest.raises(PartitionError, match="dirichlet:"):
        partition(how, LABELS, BLOCKS, 3, 0)


def test_more_devices_than_rows_are_refused() -> None:
    with pytest.raises(PartitionError, match="300 examples"):
        partition("iid", LABELS, BLOCKS, 301, 0)
