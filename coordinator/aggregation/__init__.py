"""How updates become a model: strategies, robust rules, and what is remarkable of an update.

`RoundAggregation` is what the conductor holds of an open round. `strategies` composes what a round
does of a rule (`rules`, over `columns` and `distances`) and the steps of a server's optimiser;
`spool` is a round's payloads as a matrix in bounded memory; `scores` says who stands out. Nothing
here has a clock, a file or a socket: payloads are read with a function that is passed in.
"""

from coordinator.aggregation.gathering import Outcome, RoundAggregation
from coordinator.aggregation.rules import RULES, Member
from coordinator.aggregation.scores import Score
from coordinator.aggregation.strategies import Strategy, chain, strategy_of

__all__ = [
    "RULES",
    "Member",
    "Outcome",
    "RoundAggregation",
    "Score",
    "Strategy",
    "chain",
    "strategy_of",
]
