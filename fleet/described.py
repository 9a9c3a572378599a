"""Worlds whose devices have no model of their own: each fetches it from the coordinator first.

The SDK's own newcomer does it, over the same network and through the same crashes. What the
checkers look at of a device is there before it has a model, too: a session at rest that nobody can
invite, and version 0.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edge_sdk import session as machine
from edge_sdk.described import DescribedDriver
from edge_sdk.description import DescriptionShelf, MemoryDescriptions
from edge_sdk.driver import DeviceDriver
from edge_sdk.journal import Journal
from edge_sdk.newcomer import Newcomer
from edge_sdk.trainer import Model, read_only
from fleet.disk import Fuse
from wire import Manifest

if TYPE_CHECKING:
    from fleet.virtual import VirtualFleet


class DiskDescriptions(MemoryDescriptions):
    """A device's description on its disk: there as a whole or not at all."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self._fuse = fuse

    def save(self, digest: bytes, payload: bytes) -> None:
        """Keep a description."""
        self._fuse.burn()
        if self._fuse.full:
            raise OSError("no space left on device")
        super().save(digest, payload)
        self._fuse.burn()

    def retain(self, digest: bytes) -> None:
        """Drop all others."""
        self._fuse.burn()
        super().retain(digest)


class WorldDriver(DescribedDriver):
    """What stands where an emulated device's driver does.

    Args:
        manifest: of the task, for those who look on from outside.
        journal: as for a `DescribedDriver`, with the others.
        descriptions: as above.
        make_driver: as above.
        make_newcomer: as above.
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        journal: Journal,
        descriptions: DescriptionShelf,
        make_driver: Callable[[Manifest, bytes], DeviceDriver],
        make_newcomer: Callable[[bytes], Newcomer],
    ) -> None:
        super().__init__(
            journal=journal,
            descriptions=descriptions,
            make_driver=make_driver,
            make_newcomer=make_newcomer,
        )
        self.manifest = manifest
        self._first = Model(0, read_only(manifest.tensors))
        self._none = machine.start(schema_digest=b"", boot=0, device="newcomer")

    @property
    def session(self) -> machine.Session:
        """The driver's, or one that rests."""
        return self._none if self.driver is None else self.driver.session

    @property
    def timers(self) -> dict[str, float]:
        """The driver's, or when the description is asked for again."""
        if self.driver is not None:
            return self.driver.timers
        return {} if self.next_wake_s is None else {"ask": self.next_wake_s}

    @property
    def released(self) -> Model:
        """The driver's, or the first."""
        return super().released or self._first


def describe(fleet: "VirtualFleet") -> None:
    """Take the model from every device of a fleet that has not started yet."""
    for host in fleet.hosts:
        device: Any = host.device
        device.descriptions = DiskDescriptions(host.fuse)
        device.boot()
