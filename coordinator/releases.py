"""Releases as devices see them: who moves an alias, and how they hear of it.

An alias moves in the store, by this process or by another one (`potluck model promote` beside a
running coordinator). Either way `tell` finds the lines that were added since its last look.
"""

from collections.abc import Callable

from coordinator.registry import RUN_OVER, STABLE, Actor, Moved, Registry
from coordinator.store import Store
from wire import Report
from wire.messages import Release


class Releases:
    """Moves aliases, and tells devices what apps are to use.

    Args:
        registry: versions and aliases.
        store: where the lines are.
        tell_everybody: sends a message to every device that is enrolled.
        observe: told every `Report`.
    """

    def __init__(
        self,
        registry: Registry,
        store: Store,
        tell_everybody: Callable[[Release], None],
        observe: Callable[[Report], None],
    ) -> None:
        self._registry = registry
        self._store = store
        self._tell_everybody = tell_everybody
        self._observe = observe
        # What was released before is told to each device at its check-in.
        self._told = store.last_release()

    def promote(self, version: int, alias: str, *, actor: Actor, now_s: float) -> Moved:
        """Point an alias at a version, and tell every device that is there.

        Raises:
            RegistryError: there is no such version, or its tensors are kept no more.
        """
        moved = self._registry.promote(version, alias, actor=actor, now_s=now_s)
        self.tell()
        return moved

    def rollback(self, alias: str, *, actor: Actor, now_s: float) -> Moved:
        """Point an alias at what it meant before, and tell every device that is there.

        Raises:
            RegistryError: it meant nothing before, or that version's tensors are kept no more.
        """
        moved = self._registry.rollback(alias, actor=actor, now_s=now_s)
        self.tell()
        return moved

    def run_over(self, version: int, now_s: float) -> None:
        """Every round is closed: what came of them becomes the model that apps use.

        Unless `stable` has meant it before: whoever took it back is not overruled by a restart.
        """
        if all(release.version != version for release in self._registry.history(STABLE)):
            self.promote(version, STABLE, actor=RUN_OVER, now_s=now_s)

    def tell(self) -> None:
        """Tell of the releases since the last look, whoever made them.

        Apps use `stable`. Devices that are not there hear of it at their next check-in.
        """
        news = self._store.releases(after=self._told)
        if not news:
            return
        self._told = news[-1].sequence
        for release in news:
            self._observe(Report("released", f"{release.alias} is version {release.version}"))
        for release in [release for release in news if release.alias == STABLE][-1:]:
            self._tell_everybody(Release(release.version, release.digest, STABLE))
