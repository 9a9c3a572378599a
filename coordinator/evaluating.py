"""Evaluation rounds: devices that did not train on a version say how good it is on their hold-outs.

They run beside training and never hold it up: whoever is asked had not been wanted for training at
that moment, and nobody waits for an answer. An evaluation is not durable but for its reports: after
a restart it is forgotten, and the next one is due after the next rounds.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from coordinator.config import FederationConfig
from coordinator.evaluation import LOSS_MAX, pooled_evaluations
from coordinator.leases import Lease, Leases
from coordinator.store import DiskFullError, Store
from wire import Plan, Report
from wire.errors import NotInvitedError, StaleRoundError
from wire.messages import EvaluateInvite, EvaluationReport, Message

EVALUATION_OVER: Final = "evaluation_over"


@dataclass(slots=True)
class _Evaluation:
    """One version that is being measured, or was last.

    `asked` are all who were, `outstanding` those of them who still owe an answer.
    """

    round: int
    version: int
    digest: bytes
    plan: Plan
    over_at_s: float
    trained: frozenset[str]
    asked: set[str] = field(default_factory=set)
    outstanding: set[str] = field(default_factory=set)
    reported: int = 0
    is_open: bool = True


class Evaluations:
    """The evaluation rounds of one federation, one at a time.

    Args:
        config: the federation's file: `[rounds] evaluate_every` and `evaluate_cohort`.
        store: where reports are kept.
        leases: which devices are there; asking one uses its lease up.
        understands: whether a device knows what it would be asked.
        publish: sends a message to a device.
        observe: told every `Report`.
    """

    def __init__(
        self,
        *,
        config: FederationConfig,
        store: Store,
        leases: Leases,
        understands: Callable[[str], bool],
        publish: Callable[[Message, str], None],
        observe: Callable[[Report], None],
    ) -> None:
        self._config = config
        self._store = store
        self._leases = leases
        self._understands = understands
        self._publish = publish
        self._observe = observe
        self._current: _Evaluation | None = None

    @property
    def is_open(self) -> bool:
        """Whether a version is being measured."""
        return self._current is not None and self._current.is_open

    @property
    def wants(self) -> int:
        """How many more devices are to be asked."""
        current = self._current
        if current is None or not current.is_open:
            return 0
        cohort = self._config.rounds.evaluate_cohort
        return max(cohort - current.reported - len(current.outstanding), 0)

    @property
    def over_at_s(self) -> float:
        """When the open evaluation ends at the latest, unix seconds."""
        return math.inf if self._current is None else self._current.over_at_s

    def due(self, committed_rounds: int) -> bool:
        """Whether the version that this many committed rounds made is to be measured."""
        every = self._config.rounds.evaluate_every
        return every > 0 and committed_rounds % every == 0

    def begin(
        self,
        round_number: int,
        version: int,
        digest: bytes,
        trained: Iterable[str],
        now_s: float,
    ) -> None:
        """Measure a version from now on; what was being measured ends with what it has."""
        if self.is_open:
            self.close()
        self._current = _Evaluation(
            round=round_number,
            version=version,
            digest=digest,
            plan=self._config.plan(0),
            over_at_s=now_s + self._config.rounds.deadline_s,
            trained=frozenset(trained),
        )

    def ask(self, there: Iterable[Lease], now_s: float) -> None:
        """Ask some of those who are there and are not wanted for training."""
        current = self._current
        if current is None or not self.wants:
            return
        left_s = min(max(current.over_at_s - now_s, 0.001), self._config.rounds.deadline_s)
        for lease in there:
            if not self.wants:
                break
            device = lease.device
            if device in current.trained | current.asked or not self._understands(device):
                continue
            current.asked.add(device)
            current.outstanding.add(device)
            self._leases.end(device)
            message = EvaluateInvite(
                check_in=lease.check_in,
                round=current.round,
                version=current.version,
                model_digest=current.digest,
                plan=current.plan,
                deadline_s=left_s,
            )
            self._publish(message, device)

    def lost(self, device: str, round_number: int = 0) -> None:
        """A device says that no report will come; about a certain round, if not 0."""
        current = self._current
        if current is not None and round_number in (0, current.round):
            current.outstanding.discard(device)

    def take(self, device: str, report: EvaluationReport, now_s: float) -> None:
        """Enter a device's report; a repeated or a late one changes nothing.

        Raises:
            StaleRoundError: it is about another version than was asked for last.
            NotInvitedError: the device was not asked.
        """
        current = self._current
        if current is None or (report.round, report.version) != (current.round, current.version):
            raise StaleRoundError(f"version {report.version} is not being evaluated")
        if device not in current.asked:
            raise NotInvitedError(f"was not asked to evaluate version {report.version}")
        if not current.is_open:
            return
        accuracy = report.metrics.get("accuracy")
        first = self._store.add_evaluation(
            current.version,
            device,
            loss=min(max(report.loss, 0.0), LOSS_MAX),
            accuracy=None if accuracy is None else min(max(accuracy, 0.0), 1.0),
            num_examples=report.num_examples,
            now_s=now_s,
        )
        current.outstanding.discard(device)
        current.reported += int(first)
        if current.reported >= self._config.rounds.evaluate_cohort:
            self.close()

    def close(self) -> None:
        """Enter the mean of the reports as the round's metrics, if the quorum has reported."""
        current = self._current
        if current is None or not current.is_open:
            return
        current.is_open = False
        said = f"version {current.version}: {current.reported} of {len(current.asked)} reported"
        if current.reported < self._config.rounds.evaluations_needed:
            self._observe(Report("evaluation_without_quorum", said))
            return
        metrics = pooled_evaluations(self._store.evaluations(current.version))
        try:
            self._store.note_round(current.round, metrics, "devices")
        except DiskFullError as error:
            # Nothing depends on it, and what ends with it has to end: a commit, or the run.
            self._observe(Report("evaluation_failed", str(error)))
            return
        self._observe(Report("evaluated", said))

    def reconfigure(self, config: FederationConfig) -> None:
        """Another file is in force; what is being measured goes on under it."""
        self._config = config

    def on_clock_step(self, by_s: float) -> None:
        """Somebody has set the clock: what was to end in a while still does."""
        if self._current is not None:
            self._current.over_at_s += by_s
