"""What a session does about releases: rows that every phase has alike, beside work and never in it.

The rules:

1. A release is fetched, looked at by the device's own check, and then used; until then, and when
   the check is against it, the app goes on with what it has.
2. A veto is in the journal before the coordinator hears of it. It stands for that version and those
   bytes: a reboot does not judge them again, and another version is judged anew.
3. A coordinator that offers a vetoed version again has not heard the veto, and is told once more.
   One that has heard it keeps silent. So no acknowledgement is needed (docs/adr/0033).
4. While bytes are short a release waits. The next check-in says which version is in use, and the
   coordinator releases again.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeAlias

from edge_sdk.signals import Adopt, Adopted, Vetoed, VetoedRelease
from wire import Effect, Persist, Publish, Report
from wire.messages import Release, ReleaseVeto

if TYPE_CHECKING:
    from edge_sdk.session import Session

Step: TypeAlias = "tuple[Session, tuple[Effect, ...]]"

# The gate is closed to save bytes or room for them, and a model is most of them; or by the owner.
_NOT_NOW: Final = frozenset({"metered", "byte_budget_spent", "disk_low", "opted_out"})


def released(s: "Session", event: Release, _now_s: float) -> Step:
    """The coordinator offers a version to apps."""
    if event.version == s.released_version:
        return s, ()
    veto = s.veto
    if veto is not None and (veto.version, veto.model_digest) == (
        event.version,
        event.model_digest,
    ):
        return s, _said(s, veto)
    if s.gate is None and s.gate_reason in _NOT_NOW:
        return s, (Report("release_waits", s.gate_reason),)
    return s, (Adopt(event.version, event.model_digest, event.alias),)


def adopted(s: "Session", event: Adopted, _now_s: float) -> Step:
    """The app sees it."""
    after = replace(s, released_version=event.version)
    return after, (Report("released", f"version {event.version}"),)


def vetoed(s: "Session", event: Vetoed, _now_s: float) -> Step:
    """The device's own check is against it."""
    veto = VetoedRelease(
        version=event.version,
        model_digest=event.digest,
        kept_version=s.released_version,
        reason=event.reason,
        detail=event.detail,
        metrics=event.metrics,
    )
    what = Report("vetoed", f"version {event.version}: {event.reason}")
    return replace(s, veto=veto), (Persist(veto), *_said(s, veto), what)


def _said(s: "Session", veto: VetoedRelease) -> tuple[Effect, ...]:
    """Without a link it waits for the coordinator to offer that version again."""
    message = ReleaseVeto(veto.version, veto.reason, veto.detail, veto.metrics)
    return (Publish(message),) if s.link else ()
