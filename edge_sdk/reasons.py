"""Why a device takes no part, or ended work before it was sealed: the words that it says.

One of these stands in each `Declined` (the gate is closed, or an invitation is turned down) and in
each `Failed` (work was begun and given up), in each `ReleaseVeto`, in the device's own reports, and
in `potluck device status`. A `Failed` may also carry the wire's word for what is wrong with a model
(`wire.errors`, for instance `not_finite` or `digest_mismatch`), or the coordinator's for why it
sends none; a `ReleaseVeto` also a word of the app's own.
"""

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """The words; `.says` is what each means, for people."""

    says: str

    def __new__(cls, word: str, says: str) -> Self:
        """A word that knows what it means."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.says = says
        return member

    # -- the gate, in the order in which they are looked at --------------------------------------
    OPTED_OUT = "opted_out", "the owner has opted out: nothing is sent"
    BYTE_BUDGET_SPENT = "byte_budget_spent", "the day's bytes are used up"
    METERED = "metered", "the network is paid by the byte"
    DISK_LOW = "disk_low", "the disk has little room left"
    ENERGY_BUDGET_SPENT = "energy_budget_spent", "the day's joules are used up"
    TRAINING_BUDGET_SPENT = "training_budget_spent", "the day's seconds of training are used up"
    QUIET_HOURS = "quiet_hours", "it is one of the owner's quiet hours"
    NOT_CHARGING = "not_charging", "it is off its charger"
    BATTERY_LOW = "battery_low", "it is off its charger and its battery is low"
    TOO_HOT = "too_hot", "its processor or battery is hot"
    CPU_BUSY = "cpu_busy", "the machine is busy with other work"
    MEMORY_LOW = "memory_low", "little memory is left"
    TRAINING_MEMORY = "training_memory", "training took more memory than the owner allows"
    CONDITIONS_UNKNOWN = "conditions_unknown", "the app's own source of conditions failed"
    STARTING = "starting", "the rules have not been looked at yet"
    STOPPED = "stopped", "the app has stopped the device, or work was told to stop"
    # -- an invitation that is turned down -------------------------------------------------------
    BYTES_TOO_FEW = "bytes_too_few", "the day's bytes would not do for the update"
    ENERGY_TOO_LITTLE = "energy_too_little", "the day's joules would not do for the work"
    TRAINING_TOO_SHORT = "training_too_short", "the day's seconds would not do for the work"
    # -- work that ended before it was sealed ----------------------------------------------------
    DEADLINE_PASSED = "deadline_passed", "the round's deadline passed"
    STILL_STOPPING = "still_stopping", "the trainer has not yet looked at `stop` of earlier work"
    BASE_LOST = "base_lost", "the base model is no longer on the disk"
    DISK_FAILED = "disk_failed", "the disk was full, or failed, while a model came down"
    UNKNOWN_CODEC = "unknown_codec", "the invitation names a codec that is not known here"
    NO_EXAMPLES = "no_examples", "there is nothing to train on, or no hold-out"
    PAYLOAD_BUDGET = "payload_budget", "no codec makes the update small enough"
    OUT_OF_MEMORY = "out_of_memory", "the trainer ran out of memory"
    TRAINER_HUNG = "trainer_hung", "the trainer goes on long after it was told to stop"
    TRAINER_FAILED = "trainer_failed", "the trainer raised an error"
    # -- a release that the device's own check is against ----------------------------------------
    CHECK_FAILED = "check_failed", "the app's check said no to the release"
    CHECK_RAISED = "check_raised", "the app's check of the release raised an error"
    CHECK_TIMED_OUT = "check_timed_out", "the app's check of the release took too long"
    LOSS_IS_WORSE = "loss_is_worse", "the release is worse on this device's hold-out"
