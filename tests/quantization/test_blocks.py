import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.blocks import BLOCK_PARAMETERS_MAX, blocks_of
from tests.quantization.forge import schema
from wire import Schema

SIZES = st.lists(
    st.integers(0, 200) | st.sampled_from([0, 1, 30_000, 65_535, 65_536, 65_537, 200_000]),
    max_size=12,
)


@settings(max_examples=40)
@given(SIZES)
def test_blocks_cover_every_value_once_and_in_order(sizes: list[int]) -> None:
    made = schema(*[(size,) for size in sizes])
    starts = [0, *np.cumsum(sizes).tolist()]
    at = 0
    for block in blocks_of(made):
        assert block.start == at
        inside = 0
        for piece in block.pieces:
            assert starts[piece.tensor] + piece.start == at
            assert piece.at == inside
            assert piece.start == piece.number * BLOCK_PARAMETERS_MAX
            assert 1 <= piece.size <= BLOCK_PARAMETERS_MAX
            at += piece.size
            inside += piece.size
        assert inside == block.size <= BLOCK_PARAMETERS_MAX
    assert at == sum(sizes)


@settings(max_examples=40)
@given(SIZES)
def test_a_block_ends_only_where_the_next_piece_does_not_fit(sizes: list[int]) -> None:
    made = blocks_of(schema(*[(size,) for size in sizes]))
    for block, following in itertools.pairwise(made):
        assert block.size + following.pieces[0].size > BLOCK_PARAMETERS_MAX


def test_a_model_without_values_has_no_blocks() -> None:
    assert blocks_of(Schema(())) == ()
    assert blocks_of(schema((0, 7))) == ()


def test_a_scalar_is_a_piece_of_one() -> None:
    ((block,),) = (blocks_of(schema(())),)
    assert (block.size, block.pieces[0].size) == (1, 1)


def test_pieces_of_one_tensor_are_numbered_from_zero() -> None:
    made = blocks_of(schema((3,), (2 * BLOCK_PARAMETERS_MAX + 1,), (2,)))
    assert [[(p.tensor, p.number, p.size) for p in block.pieces] for block in made] == [
        [(0, 0, 3)],
        [(1, 0, 65_536)],
        [(1, 1, 65_536)],
        [(1, 2, 1), (2, 0, 2)],
    ]
