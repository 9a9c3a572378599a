"""How a model is cut: into pieces of one tensor, and blocks of neighbouring pieces.

A *piece* is up to 65,536 neighbouring values of one tensor: what fits a small cache, and what every
codec works on at a time. A *block* is as many whole pieces in a row as have at most 65,536 values
together. Each block is compressed alone and can be decoded alone, so that robust rules may look at
one block of a thousand updates. Where the cuts are follows from the schema, and is never sent.
"""

import functools
from dataclasses import dataclass
from typing import Final

from wire import Schema

BLOCK_PARAMETERS_MAX: Final = 65_536


@dataclass(frozen=True, slots=True)
class Piece:
    """Values `start` to `start + size` of a flattened tensor.

    Attributes:
        tensor: index of the tensor in the schema.
        number: index of the piece in its tensor.
        start: in the tensor, in values.
        size: in values, at least 1.
        at: where its values begin in the block, in values.
    """

    tensor: int
    number: int
    start: int
    size: int
    at: int


@dataclass(frozen=True, slots=True)
class Block:
    """Pieces that are compressed together.

    Attributes:
        start: where its values begin in the flattened model.
        size: how many values it has.
        pieces: in order.
    """

    start: int
    size: int
    pieces: tuple[Piece, ...]


@functools.lru_cache(maxsize=64)
def blocks_of(schema: Schema) -> tuple[Block, ...]:
    """The blocks of a model, in order; none for a model without values."""
    made: list[Block] = []
    pieces: list[Piece] = []
    start = filled = 0
    for tensor, spec in enumerate(schema.tensors):
        for number, first in enumerate(range(0, spec.size, BLOCK_PARAMETERS_MAX)):
            size = min(BLOCK_PARAMETERS_MAX, spec.size - first)
            if filled + size > BLOCK_PARAMETERS_MAX:
                made.append(Block(start, filled, tuple(pieces)))
                start, filled, pieces = start + filled, 0, []
            pieces.append(Piece(tensor, number, first, size, filled))
            filled += size
    if pieces:
        made.append(Block(start, filled, tuple(pieces)))
    return tuple(made)
