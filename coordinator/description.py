"""What devices are told of the model that have none: made at the start, and held to the last run.

The schema of the shared tensors is a federation's for good (`Models`). The rest of a model may be
another at a restart: a new `.tflite` file, other frozen weights. Devices that have their model from
here then fetch it anew (`Attendance.take`); those whose task has a `model()` of its own do not.
"""

from collections.abc import Callable
from typing import Final

from coordinator.store import Store
from wire import Description, Manifest, Report, limits

# Where the store has the digest of the description that was served last.
DESCRIPTION_DIGEST: Final = "description_digest"


def describe(
    manifest: Manifest, store: Store, observe: Callable[[Report], None]
) -> Description | None:
    """The model's description, remembered in the store; None when it is too large to be sent.

    Raises:
        ManifestError: the artefact and the tensors do not belong together.
    """
    description = Description(manifest)
    if description.payload_bytes > limits.TRANSFER_BYTES_MAX:
        detail = (
            f"{description.payload_bytes} bytes, at most {limits.TRANSFER_BYTES_MAX}:"
            " only devices whose task has a model() can take part"
        )
        observe(Report("description_too_large", detail))
        return None
    known = store.get(DESCRIPTION_DIGEST)
    if known == description.digest:
        return description
    store.put(DESCRIPTION_DIGEST, description.digest)
    if known is not None:
        detail = f"{known.hex()[:16]} is now {description.digest.hex()[:16]}"
        observe(Report("description_changed", f"{detail}: devices that have it from here fetch it"))
    return description
