"""One round's updates from the first to the version: what the conductor holds while it is open.

The rules:

1. What is not a valid update of this model raises, and nothing of it stays.
2. The same accepted updates give the same bits: whatever the order in which they came, and also
   after a restart that has read them from the spool.
3. What was taken and is not among those that count is taken out again.
4. `finish` may be asked again, should what follows it fail.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from coordinator.aggregation.rules import Member, Round
from coordinator.aggregation.scores import Score, score
from coordinator.aggregation.spool import Flat, Spool
from coordinator.aggregation.strategies import strategy_of
from coordinator.signals import RoundOpened
from quantization import SHARE_UNITS, Portion
from wire import Schema, Tensors
from wire.errors import LocalProtocolError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round has come to.

    Attributes:
        change: to be added to the model, float32 by name.
        memory: what the next round begins with; belongs to the version.
        scores: what is remarkable of each member, in canonical order; none under a rule that does
            not judge.
    """

    change: Tensors
    memory: bytes
    scores: tuple[Score, ...]


class RoundAggregation:
    """The updates of one open round.

    Args:
        schema: of the updates.
        opened: the round's record; all that the result follows from beside the updates.
        memory: what the version has left that the round begins with.
    """

    def __init__(self, schema: Schema, opened: RoundOpened, memory: bytes) -> None:
        self._schema = schema
        self._opened = opened
        self._strategy = strategy_of(opened.aggregation)
        # Whom a buffer invites is not known when it opens; it closes when its cohort is accepted.
        expected = opened.cohort if opened.mode == "async" else len(opened.invited)
        self._total, self._memory = self._strategy.init(
            schema, memory, weight_cap=opened.weight_cap, updates_max=max(1, expected)
        )
        self._members: dict[bytes, Member] = {}

    @property
    def norms(self) -> dict[bytes, float]:
        """The L2 norm of each update so far, by id."""
        return {key: member.norm for key, member in self._members.items()}

    def accept(
        self,
        update_id: bytes,
        device: str,
        weight: int,
        payload: bytes,
        *,
        factor: float = 1.0,
    ) -> None:
        """Take an update.

        Args:
            update_id: it may come once.
            device: whose it is.
            weight: 1 to the round's `weight_cap`.
            payload: as it came.
            factor: over 0, to 1: what it and its weight are multiplied with, rounded to 2**-20.
                Rules that look at each coordinate alone have no weights, and do not use it.

        Raises:
            RemoteProtocolError: it is not a valid update of this model.
            LocalProtocolError: it came before, or a bound is passed.
        """
        if update_id in self._members:
            raise LocalProtocolError(f"update {update_id.hex()} is in the round already")
        if not 0.0 < factor <= 1.0:
            raise LocalProtocolError(f"factor {factor} is not over 0, to 1")
        share = max(1, round(factor * SHARE_UNITS))
        norm = self._strategy.accumulate(self._total, payload, weight, share)
        portion = Portion(weight, share)
        self._members[update_id] = Member(update_id, device, norm, portion, portion)

    def finish(self, accepted: Sequence[bytes], *, read: Callable[[bytes], bytes]) -> Outcome:
        """Make one change of the accepted updates.

        Args:
            accepted: update ids, in any order; each was taken.
            read: a payload by its update id.

        Raises:
            LocalProtocolError: none, or one that was never taken.
        """
        strangers = set(accepted) - self._members.keys()
        if strangers or not accepted:
            raise LocalProtocolError(f"{len(strangers)} of {len(accepted)} updates are not here")
        for update_id in sorted(self._members.keys() - set(accepted)):
            member = self._members.pop(update_id)
            if self._strategy.streams:
                self._total.take_back(read(update_id), member.portion)
        members = tuple(self._members[key] for key in sorted(self._members))
        spool = Spool(self._schema, [member.update_id for member in members], read)
        plan = self._opened.aggregation
        change, common, memory = self._strategy.finish(
            self._total, self._memory, Round(plan, members, spool, self._memory.norms)
        )
        for member, portion in zip(members, common.portions, strict=True):
            self._members[member.update_id] = replace(member, portion=portion)
        scores: tuple[Score, ...] = ()
        if plan.robust != "none":  # without a rule the liars may be what the others are measured by
            scores = score(self._opened.plan.seed, members, common, spool, self._memory.norms)
        return Outcome(self._named(change), self._strategy.pack(memory), scores)

    def _named(self, change: Flat) -> Tensors:
        named: Tensors = {}
        start = 0
        for spec in self._schema.tensors:
            named[spec.name] = change[start : start + spec.size].reshape(spec.shape)
            start += spec.size
        return named
