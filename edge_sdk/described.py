"""A driver whose model comes from the coordinator: first a newcomer, then a driver, or back again.

A `DeviceDriver` is of one model for life, and a boot of the session goes with it. So what changes
with the model is which of the two is there. When the coordinator says that the description is
outdated, the driver ends between two pieces of work, at rest with nothing sealed: no update is lost
with it, and the coordinator would invite it for none. What both are told of link and gate is
remembered here for whoever comes next.
"""

from collections.abc import Callable
from typing import Final

from edge_sdk.description import DescriptionShelf
from edge_sdk.driver import DeviceDriver
from edge_sdk.journal import Journal
from edge_sdk.newcomer import Newcomer
from edge_sdk.signals import GateClosed, GateOpened
from edge_sdk.trainer import Model, Trainer
from edge_sdk.work import Work, WorkDone
from wire import LocalProtocolError, Manifest, Tensors

# A broker may repeat the word that a description is outdated; it is believed so often at most.
BELIEVED_EVERY_S: Final = 30.0


class DescribedDriver:
    """One enrolled device whose task has no model of its own; called like a `DeviceDriver`.

    Args:
        journal: where the digest of its description is.
        descriptions: where that is kept.
        make_driver: makes a driver of a manifest and its description's digest.
        make_newcomer: makes who fetches one, told the digest of the one that is here, or nothing.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        descriptions: DescriptionShelf,
        make_driver: Callable[[Manifest, bytes], DeviceDriver],
        make_newcomer: Callable[[bytes], Newcomer],
    ) -> None:
        self._make_driver = make_driver
        self._make_newcomer = make_newcomer
        self._gate: GateOpened | GateClosed | None = None
        self._packet_bytes_max: int | None = None
        self._believes_at_s: float | None = None
        digest = journal.description()
        manifest = descriptions.load(digest) if digest else None
        self._now: DeviceDriver | Newcomer = (
            make_newcomer(b"") if manifest is None else make_driver(manifest, digest)
        )

    @property
    def driver(self) -> DeviceDriver | None:
        """The driver, while there is a model."""
        return self._now if isinstance(self._now, DeviceDriver) else None

    @property
    def released(self) -> Model | None:
        """The released model; None while there is none, or another is being fetched."""
        return None if self.driver is None else self.driver.released

    @property
    def revoked(self) -> bool:
        """Whether the device is out of the federation."""
        return self._now.revoked

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topic that the device listens to."""
        return self._now.subscriptions

    @property
    def next_wake_s(self) -> float | None:
        """When `wake` is due."""
        return self._now.next_wake_s

    def will(self) -> tuple[str, bytes]:
        """The last will for a connection that is about to be made."""
        return self._now.will()

    def on_link_up(self, packet_bytes_max: int, now_s: float) -> None:
        """The broker is there, and takes packets of this size."""
        self._packet_bytes_max = packet_bytes_max
        self._now.on_link_up(packet_bytes_max, now_s)
        self._settle(now_s)

    def on_link_down(self, now_s: float) -> None:
        """The broker is gone."""
        self._packet_bytes_max = None
        self._now.on_link_down(now_s)
        self._settle(now_s)

    def on_gate(self, gate: GateOpened | GateClosed, now_s: float) -> None:
        """Conditions are judged anew."""
        self._gate = gate
        self._now.on_gate(gate, now_s)
        self._settle(now_s)

    def wake(self, now_s: float) -> None:
        """Run every timer that is due."""
        self._now.wake(now_s)
        self._settle(now_s)

    def on_frame(self, topic: str, data: bytes, now_s: float) -> None:
        """Take a publication from the broker, whatever it is."""
        self._now.on_frame(topic, data, now_s)
        self._settle(now_s)

    def work_done(self, work: Work, event: WorkDone, now_s: float) -> None:
        """Work is over; that of a driver that is gone means nothing."""
        if self.driver is not None:
            self.driver.work_done(work, event, now_s)
            self._settle(now_s)

    @property
    def has_more_to_send(self) -> bool:
        """Whether `send_more` is to be called when the broker has taken something."""
        driver = self.driver  # the link's thread asks, and another may take over meanwhile
        return driver is not None and driver.has_more_to_send

    def send_more(self, now_s: float) -> None:
        """Publish chunks of the sealed update while the link can use them."""
        if self.driver is not None:
            self.driver.send_more(now_s)

    @property
    def is_uploading(self) -> bool:
        """Whether an update is on its way up."""
        return self.driver is not None and self.driver.is_uploading

    def trainer_hung(self, round_number: int) -> None:
        """Tell the coordinator of work that was given up and goes on all the same."""
        if self.driver is not None:
            self.driver.trainer_hung(round_number)

    def make_trainer(self) -> Trainer:
        """The task's trainer; only while there is a model to train."""
        if self.driver is None:
            raise LocalProtocolError("there is no model to train yet")
        return self.driver.make_trainer()

    def personalise(self, personal: Tensors) -> None:
        """Keep a personal part that was trained beside the rounds."""
        if self.driver is not None:
            self.driver.personalise(personal)

    def leave(self) -> None:
        """Tell the coordinator that the owner takes the device out."""
        self._now.leave()

    def _settle(self, now_s: float) -> None:
        """Let the other one take over, when it is time for that."""
        if isinstance(self._now, Newcomer):
            if self._now.found is None:
                return
            digest, manifest = self._now.found
            self._now = self._make_driver(manifest, digest)
        else:
            if not self._now.outdated or not self._now.resting:
                return
            self._now.outdated = False
            if self._believes_at_s is not None and now_s < self._believes_at_s:
                return  # it is said again at the next check-in, if it is so
            self._believes_at_s = now_s + BELIEVED_EVERY_S
            self._now = self._make_newcomer(self._now.session.description_digest)
        if self._gate is not None:
            self._now.on_gate(self._gate, now_s)
        if self._packet_bytes_max is not None:
            self._now.on_link_up(self._packet_bytes_max, now_s)
        # Whoever comes may be done at once: all of it was on disk.
        self._settle(now_s)
