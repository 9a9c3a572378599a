"""Joining a federation: a key that never leaves, a one-time token, and a name in return.

The key is on disk before anything is sent, so that a device that crashes in between asks again
with the same key and is told the same name. A file may hold several tokens, one a line: those that
other devices have used are passed over.
"""

import queue
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edge_sdk.journal import Enrolment
from wire import (
    Address,
    Crypto,
    PotluckError,
    RemoteProtocolError,
    Signer,
    coordinator_id,
    device_id,
    frames,
    token_proof,
    topics,
)
from wire.messages import Enrolled, EnrolRequest, Refused
from wire.token import Token

if TYPE_CHECKING:
    from wire import BrokerAddress, TlsFiles

ASK_AGAIN_S: Final = 2.0
CA_FILE: Final = "ca.pem"


class EnrolmentError(PotluckError):
    """The device is not enrolled; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One token in the hand of one device: what to publish, and what an answer means."""

    token: Token
    signer: Signer
    crypto: Crypto
    device_class: str = "unknown"

    @property
    def _scope(self) -> str:
        return topics.enrolment_scope(coordinator_id(bytes.fromhex(self.token.coordinator_key)))

    @property
    def down(self) -> Address:
        """Where the answer comes."""
        return Address(self._scope, self.token.token_id, "down")

    def request(self) -> tuple[str, bytes]:
        """The topic and the frame of the request."""
        up = Address(self._scope, self.token.token_id, "up")
        key = self.signer.public_key
        message = EnrolRequest(
            public_key=key,
            proof=token_proof(bytes.fromhex(self.token.secret), key),
            device_class=self.device_class,
        )
        return up.topic, frames.seal(message, up, self.signer)

    def answer(self, topic: str, data: bytes) -> Enrolment | Refused | None:
        """What a publication says, None when it is not the coordinator's answer.

        A forged or damaged answer counts as none: the device asks again.
        """
        if topic != self.down.topic:
            return None
        key = bytes.fromhex(self.token.coordinator_key)
        try:
            message = frames.open_frame(data, self.down, key, self.crypto)
        except RemoteProtocolError:
            return None
        if isinstance(message, Enrolled):
            if message.device != device_id(self.signer.public_key):
                return None  # two devices try one token, and this is the other's answer
            return Enrolment(
                device=message.device,
                federation=message.federation,
                coordinator_key=key,
                broker=self.token.broker,
                ca=self.token.ca,
                certificate=message.certificate,
            )
        return message if isinstance(message, Refused) else None


def tls_files(address: "BrokerAddress", ca: str, directory: Path) -> "TlsFiles | None":
    """The CA that a token brought, as the file that TLS wants; None without TLS."""
    if not address.tls:
        return None
    from wire import TlsFiles  # noqa: PLC0415 - paho-mqtt, loaded when it is used

    path = directory / CA_FILE
    path.write_text(ca)
    return TlsFiles(str(path))


def enrol(
    tokens: Sequence[Token],
    signer: Signer,
    crypto: Crypto,
    *,
    device_class: str = "unknown",
    broker: str | None = None,
    directory: Path,
    timeout_s: float = 30.0,
) -> Enrolment:
    """Present tokens until one is taken; blocks.

    Args:
        tokens: tried in turn.
        signer: the device's key, on disk already.
        crypto: the signature scheme.
        device_class: what the device says it is.
        broker: a URL that replaces the tokens' own.
        directory: where the CA is written when the broker speaks TLS.
        timeout_s: for all tokens together.

    Raises:
        EnrolmentError: no token was taken, or nobody answered in time.
    """
    give_up_at_s = time.monotonic() + timeout_s
    refusal = ""
    for token in tokens:
        asking = Asking(token, signer, crypto, device_class)
        answer = _ask(asking, broker or token.broker, directory, give_up_at_s)
        if isinstance(answer, Enrolment):
            return answer
        refusal = f"{answer.reason}: {answer.detail}"
    raise EnrolmentError(
        f"no token was accepted ({refusal or 'the file is empty'}); ask the operator for a new one:"
        " potluck enroll STATE_DIR -n 1 -o FILE"
    )


def _ask(asking: Asking, broker: str, directory: Path, give_up_at_s: float) -> Enrolment | Refused:
    from wire import BrokerAddress, MqttLink  # noqa: PLC0415 - paho-mqtt, loaded when it is used

    answers: queue.SimpleQueue[Enrolment | Refused | str] = queue.SimpleQueue()

    reasons: deque[str] = deque(maxlen=1)

    def on_message(topic: str, data: bytes) -> None:
        answer = asking.answer(topic, data)
        if answer is not None:
            answers.put(answer)

    address = BrokerAddress.parse(broker)
    link = MqttLink(
        address,
        # By device, not by token: two that try the same one must not throw each other out.
        f"enrol-{device_id(asking.signer.public_key)}",
        subscriptions=(asking.down.topic,),
        on_message=on_message,
        on_up=lambda _bytes: answers.put("up"),
        on_down=reasons.append,
        tls=tls_files(address, asking.token.ca, directory),
    )
    link.start()
    asked = False
    try:
        while (left_s := give_up_at_s - time.monotonic()) > 0.0:
            try:
                answer = answers.get(timeout=min(ASK_AGAIN_S, left_s))
            except queue.Empty:
                answer = "again"
            if not isinstance(answer, str):
                return answer
            if link.up:
                asked = True
                link.publish(*asking.request())
    finally:
        link.stop()
    raise EnrolmentError(
        f"the coordinator did not answer at {broker}; is `potluck coordinator run` running there?"
        if asked
        else f"no broker answers at {broker} ({reasons.pop() if reasons else 'no answer'}); is it"
        " running, and is the address right?"
    )
