"""What devices say against a release.

It is kept, shown and counted; nothing follows from it by itself: whoever looks decides whether to
roll back (docs/adr/0033).
"""

from collections.abc import Callable

from coordinator.store import Store, VetoRow
from wire import Report
from wire.errors import UnknownVersionError
from wire.messages import ReleaseVeto


class Vetoes:
    """Takes vetoes.

    Args:
        store: where they are kept.
        observe: told every `Report`.
    """

    def __init__(self, store: Store, observe: Callable[[Report], None]) -> None:
        self._store = store
        self._observe = observe

    def take(self, device: str, message: ReleaseVeto, now_s: float) -> None:
        """A device does not use a version. Once it is kept, that version is not offered again.

        Raises:
            UnknownVersionError: no such version was ever released.
            DiskFullError: there is no room; the device says it again when it is offered again.
        """
        if not self._store.was_released(message.version):
            raise UnknownVersionError(f"version {message.version} was never released")
        veto = VetoRow(
            message.version, device, message.reason, message.detail, message.metrics, now_s
        )
        if self._store.add_veto(veto):
            what = f"version {veto.version}: {veto.reason}"
            self._observe(Report("release_vetoed", what, device))
