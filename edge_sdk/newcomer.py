"""A device that has no model yet: it fetches the description, and does nothing else until then.

What a `DeviceDriver` needs from its first moment (a schema, first values) is not there, so this
stands in its place. It speaks when link and gate allow it, asks, keeps what comes, asks again for
what is missing, and does not check in: nobody can invite it. The same frames, timers and conditions
come in; time comes in with them. The rules:

1. Every request says how many bytes may come: what the day's budget leaves. The rest is asked for
   when there is more of it, and nothing is fetched twice: chunks outlive the process.
2. One offer is taken for one request. A broker that repeats an old one cannot throw away what is
   here.
3. What is wrong with a description is counted, and it is asked for again later and later: its bytes
   are its owner's.
4. The description is on disk, then its digest in the journal, then its part is deleted: a crash
   anywhere in between costs no byte.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Final

from edge_sdk.description import DescriptionDownload, DescriptionShelf
from edge_sdk.journal import Enrolment, Journal
from edge_sdk.ladder import OVERHEAD, Means
from edge_sdk.parts import PartStore, SpoiledPartError
from edge_sdk.reasons import Reason
from edge_sdk.session import ANSWER_S_MAX, ANSWER_S_MIN, FAILURE_PAUSE_S, SLOW_LINK_BYTES_PER_S
from edge_sdk.signals import GateClosed, GateOpened
from wire import (
    Crypto,
    Manifest,
    RemoteProtocolError,
    Report,
    Signer,
    chunk_bytes_for,
    frames,
    limits,
    read_description,
    topics,
)
from wire.messages import (
    Chunk,
    ComeBackAt,
    DescriptionOffer,
    DescriptionRequest,
    Gone,
    Leave,
    Message,
    Refused,
    Revoked,
)
from wire.topics import Address

# After a description that is wrong, or a disk that is full: doubled each time.
_PAUSE_S_MAX: Final = 21_600.0
_DOUBLINGS_MAX: Final = 10
# The day's bytes do not grow; there may be more of them tomorrow.
_BUDGET_PAUSE_S: Final = 1_800.0
# Of MQTT 5 around topic and payload, both ways: header, lengths, packet id, and the PUBACK.
_PACKET_BYTES: Final = 16
# A request and its offer, and the packets around them.
_ASKING_BYTES: Final = 1_024


class Newcomer:
    """One enrolled device before it has a model.

    Args:
        have_digest: of a description that it has and that was said to be outdated; else empty.
        journal: what survives a crash.
        descriptions: where the description is kept.
        enrolment: who the device is.
        signer: its key.
        crypto: the signature scheme.
        publish: sends (topic, payload) at QoS 1.
        observe: told every `Report`.
        means: what is left of the day's budgets.
        parts: where the transfer is put together; None is memory, and a reboot loses it.
        may_send: whether the day's bytes do for a packet of so many bytes, as of now: `means` are
            those of the last look.

    Attributes:
        found: digest and manifest, once they are here.
        revoked: whether the device is out of the federation.
        incidents: what has come that should not have.
    """

    def __init__(
        self,
        *,
        have_digest: bytes,
        journal: Journal,
        descriptions: DescriptionShelf,
        enrolment: Enrolment,
        signer: Signer,
        crypto: Crypto,
        publish: Callable[[str, bytes], None],
        observe: Callable[[Report], None],
        means: Callable[[], Means] = Means,
        parts: PartStore | None = None,
        may_send: Callable[[int, bool], bool] = lambda _bytes, _last_word: True,
    ) -> None:
        kept = journal.begin_boot()
        self.found: tuple[bytes, Manifest] | None = None
        self.revoked = kept.revoked
        self.incidents: Counter[str] = Counter()
        self._boot = kept.boot
        self._journal = journal
        self._descriptions = descriptions
        self._coordinator_key = enrolment.coordinator_key
        self._signer = signer
        self._crypto = crypto
        self._publish_bytes = publish
        self._observe = observe
        self._means = means
        self._may_send = may_send
        self._up = Address(enrolment.federation, enrolment.device, "up")
        self._down = Address(enrolment.federation, enrolment.device, "down")
        self._chunk_bytes = 0
        self._gate_is_open = False
        self._ask_at_s: float | None = None
        self._tries = 0
        self._failures = 0
        self._not_before_s = -math.inf
        self._expects_offer = False
        self._said: Report | None = None
        self._logged: set[str] = set()
        self._download = DescriptionDownload(have_digest, parts)
        try:
            chunks = self._download.resume()
        except SpoiledPartError as error:
            self._note(Report("part_spoiled", str(error)))
        else:
            if chunks:
                self._note(Report("part_resumed", f"the description: {chunks} chunks are here"))

    # -- what whoever runs it calls ----------------------------------------------------------

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The topic that the device listens to."""
        return (self._down.topic,)

    @property
    def next_wake_s(self) -> float | None:
        """When `wake` is due."""
        return self._ask_at_s

    def will(self) -> tuple[str, bytes]:
        """The last will for a connection that is about to be made."""
        # Later than all that was said before this boot, and earlier than all that comes after it.
        return self._up.topic, self._sealed(Gone(check_in=self._boot << 32))

    def on_link_up(self, packet_bytes_max: int, now_s: float) -> None:
        """The broker is there, and takes packets of this size."""
        self._chunk_bytes = chunk_bytes_for(packet_bytes_max)
        self._tries = 0
        self._ask(now_s)

    def on_link_down(self, _now_s: float) -> None:
        """The broker is gone."""
        self._chunk_bytes = 0
        self._ask_at_s = None

    def on_gate(self, gate: GateOpened | GateClosed, now_s: float) -> None:
        """Conditions are judged anew."""
        was_open, self._gate_is_open = self._gate_is_open, isinstance(gate, GateOpened)
        if isinstance(gate, GateClosed):
            # What is under way comes all the same, and is kept: its bytes are spent.
            self._ask_at_s = None
            self._say(Report("description_waits", gate.reason))
        elif not was_open:
            self._tries = 0
            self._ask(now_s)

    def wake(self, now_s: float) -> None:
        """Ask again, if it is time."""
        if self._ask_at_s is not None and self._ask_at_s <= now_s:
            self._ask(now_s)

    def leave(self) -> None:
        """Tell the coordinator that the owner takes the device out."""
        self._send(Leave())

    def on_frame(self, topic: str, data: bytes, now_s: float) -> None:
        """Take a publication from the broker, whatever it is."""
        try:
            address = topics.parse(topic)
            if address != self._down:
                raise RemoteProtocolError(f"topic {topic[:64]!r} is not this device's")  # noqa: TRY301 - one place counts
            message = frames.open_frame(data, address, self._coordinator_key, self._crypto)
            self._on_message(message, now_s)
        except RemoteProtocolError as error:
            self._count_incident(error)
        except OSError as error:
            self._fail(f"the disk: {error}", now_s)

    # -- asking ------------------------------------------------------------------------------

    def _ask(self, now_s: float) -> None:
        self._ask_at_s = None
        if self.found is not None or self.revoked or not self._gate_is_open:
            return
        if now_s < self._not_before_s:
            self._ask_at_s = self._not_before_s
            return
        if self._download.complete:
            self._finish(now_s)  # the process ended between the last chunk and the description
            return
        if not self._chunk_bytes:
            return
        room = self._means().room.traffic_bytes
        most = limits.TRANSFER_BYTES_MAX
        if not math.isinf(room):
            most = min(int((room - _ASKING_BYTES) / (1.0 + OVERHEAD)), most)
        if most < max(self._download.next_chunk_bytes, 1):
            self._say(Report("description_waits", Reason.BYTES_TOO_FEW))
            self._ask_at_s = now_s + _BUDGET_PAUSE_S
            return
        # A chunk is spent as a whole: no larger than what is left of the day.
        chunk_bytes_max = min(self._chunk_bytes, max(most, limits.CHUNK_BYTES_MIN))
        if not self._send(self._download.request(chunk_bytes_max, most)):
            self._say(Report("description_waits", Reason.BYTES_TOO_FEW))
            self._ask_at_s = now_s + _BUDGET_PAUSE_S
            return
        self._say(Report("description_wanted", self._download.digest.hex()[:16]))
        self._expects_offer = True
        patience_s = min(ANSWER_S_MIN * 2.0 ** min(self._tries, _DOUBLINGS_MAX), ANSWER_S_MAX)
        self._tries += 1
        self._ask_at_s = now_s + patience_s

    def _be_patient(self, bytes_before_next: int, now_s: float) -> None:
        """It is on its way: it is asked for again only when nothing comes any more."""
        self._tries = 0
        if self._ask_at_s is not None:
            patience_s = ANSWER_S_MIN + bytes_before_next / SLOW_LINK_BYTES_PER_S
            self._ask_at_s = max(self._ask_at_s, now_s + patience_s)

    def _fail(self, detail: str, now_s: float) -> None:
        """Begin again from nothing, later."""
        self._download.discard()
        pause_s = min(FAILURE_PAUSE_S * 2.0 ** min(self._failures, _DOUBLINGS_MAX), _PAUSE_S_MAX)
        self._failures += 1
        self._note(Report("description_failed", f"{detail}; again in {pause_s:.0f} s"))
        self._not_before_s = now_s + pause_s
        self._ask(now_s)

    # -- messages ----------------------------------------------------------------------------

    def _on_message(self, message: Message, now_s: float) -> None:
        match message:
            case DescriptionOffer():
                self._announced(message, now_s)
            case Chunk():
                self._be_patient(len(message.data), now_s)
                if self.found is None and self._download.add(message):
                    self._finish(now_s)
            case Refused() if message.kind == DescriptionRequest.KIND:
                self._say(Report("refused", f"{message.reason}: {message.detail}"))
                self._ask_at_s = now_s + ANSWER_S_MAX
            case ComeBackAt():
                # The coordinator was away, and what it was asked then is gone.
                if self._ask_at_s is not None:
                    self._tries = 0
                    self._ask_at_s = min(self._ask_at_s, now_s + message.after_s)
            case Revoked():
                self._journal.revoke(message.reason)
                self.revoked, self._ask_at_s = True, None
                self._observe(Report("revoked", message.reason))
            case _:
                self.incidents["unexpected"] += 1

    def _announced(self, offer: DescriptionOffer, now_s: float) -> None:
        if not self._expects_offer or self.found is not None:
            self.incidents["unexpected"] += 1
            return
        self._expects_offer = False
        if self._download.announce(offer):
            self._be_patient(offer.chunk_bytes, now_s)
            return
        digest = self._download.have_digest
        manifest = self._descriptions.load(digest)
        if manifest is None:
            self._download.have_digest = b""
            self._ask(now_s)
            return
        self._have(digest, manifest)

    def _finish(self, now_s: float) -> None:
        """All of it is here: check it, keep it, and only then use it."""
        try:
            payload = self._download.payload()
            manifest = read_description(payload)
            digest = hashlib.sha256(payload).digest()
            self._descriptions.save(digest, payload)
        except RemoteProtocolError as error:
            self._count_incident(error)
            self._fail(error.reason, now_s)
            return
        except OSError as error:
            self._fail(f"the disk: {error}", now_s)
            return
        self._journal.note_description(digest)
        self._descriptions.retain(digest)
        self._download.discard()
        self._have(digest, manifest)
        self._observe(Report("description_fetched", f"{digest.hex()[:16]}, {len(payload)} bytes"))

    def _have(self, digest: bytes, manifest: Manifest) -> None:
        self.found = (digest, manifest)
        self._ask_at_s = None

    # -- speaking ----------------------------------------------------------------------------

    def _send(self, message: Message) -> bool:
        """Sign and send, if the owner's bytes do; `leave` is said whatever it costs."""
        frame, topic = self._sealed(message), self._up.topic
        size = len(frame) + len(topic) + _PACKET_BYTES
        if not (isinstance(message, Leave) or self._may_send(size, False)):  # noqa: FBT003 - a callback
            return False
        self._publish_bytes(topic, frame)
        return True

    def _sealed(self, message: Message) -> bytes:
        return frames.seal(message, self._up, self._signer)

    def _say(self, report: Report) -> None:
        """Report it, unless it was the last that was said."""
        if self._said != report:
            self._said = report
            self._observe(report)

    def _note(self, report: Report) -> None:
        self.incidents[report.what] += 1
        self._observe(report)

    def _count_incident(self, error: RemoteProtocolError) -> None:
        self.incidents[error.reason] += 1
        if error.reason not in self._logged:
            self._logged.add(error.reason)
            self._observe(Report("bad_input", f"{error.reason}: {error}"))
