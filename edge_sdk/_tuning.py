"""Fine-tuning on a device that does not run: the caller's thread trains, and looks at the rules."""

from edge_sdk._gatekeeper import Gatekeeper
from edge_sdk._running import moment
from edge_sdk.fine_tuning import (
    FineTuned,
    FineTuneWork,
    FineTuningError,
    blame_gate,
    watched,
)
from edge_sdk.models import ModelShelf
from edge_sdk.policy import GATE_WORKING_S
from edge_sdk.signals import GateClosed
from edge_sdk.trainer import Stop


def fine_tune_alone(
    work: FineTuneWork, rules: Gatekeeper, shelf: ModelShelf, stop: Stop
) -> FineTuned | FineTuningError:
    """Do the work now if the rules allow it, add up what it costs, keep what it makes."""

    def forbidden() -> bool:
        rules.look(moment())
        return isinstance(rules.allowed, GateClosed) and not work.anyway

    if forbidden():
        return blame_gate(FineTuningError("stopped"), work, rules.allowed)
    watch = watched(forbidden, GATE_WORKING_S)
    work.asked_to_stop = lambda: stop() or watch()
    rules.work_begins(moment().now_s)
    result = work.run()
    rules.work_ends(moment().now_s, trained=False, finished=False)
    rules.spend(moment(), at_once=True)
    if work.new_personal:
        shelf.save_personal({**shelf.personal(), **work.new_personal})
    return blame_gate(result, work, rules.allowed)
