"""Whether an invitation is taken up: what is left of the day against what the work takes."""

from edge_sdk.ladder import Costs, Means, Room, Rung, allowed, head_alone
from edge_sdk.session import Session
from edge_sdk.signals import TurnDown
from wire import Manifest
from wire.messages import EvaluateInvite, Invite


def weigh(
    invite: Invite | EvaluateInvite,
    session: Session,
    means: Means,
    manifest: Manifest,
    last_fetch_bytes: int,
) -> Invite | EvaluateInvite | TurnDown:
    """An invitation, or that it is turned down because the day's budgets do not do for it.

    `last_fetch_bytes` is what the last model took on its way down.
    """
    if session.gate is None or means.room == Room():
        return invite
    trains = isinstance(invite, Invite)
    version = invite.base_version if isinstance(invite, Invite) else invite.version
    costs = costs_of(manifest, means, 0 if version == session.held_version else last_fetch_bytes)
    rung, short = allowed(means.room, costs)
    if short is None or (rung < Rung.SKIP and not trains):
        return invite
    return TurnDown(invite.check_in, invite.round, short)


def costs_of(manifest: Manifest, means: Means, fetch_bytes: int = 0) -> Costs:
    """What a round takes of a device, as far as it is known."""
    values = manifest.schema.shared.parameters
    head = sum(manifest.tensors[name].size for name in manifest.head)
    return Costs(
        training=means.training,
        head_training=means.head_training,
        evaluation=means.evaluation,
        fetch_bytes=fetch_bytes,
        values=values,
        head_values=head or values,
    )


def trains_head_alone(manifest: Manifest, means: Means) -> bool:
    """Whether there is time or energy for the head, and not for all of a model."""
    return bool(manifest.head) and head_alone(means.room, costs_of(manifest, means))
