"""What can go wrong with a trainable file: our side's reasons and theirs."""

from typing import ClassVar

from wire.errors import PotluckError, RemoteProtocolError


class LiteRTError(PotluckError):
    """Training with a `.tflite` file is not possible as asked; the text says what to do."""


class ArtefactRejectedError(RemoteProtocolError):
    """A trainable file is not what is said of it, or did not stand its trial.

    Nothing of it was computed with in this process.
    """

    reason: ClassVar[str] = "artefact_rejected"
