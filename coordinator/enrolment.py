"""Redeeming one-time tokens: the only thing that a stranger may do here."""

import hmac

from coordinator.identity import Identity
from coordinator.store import Store
from wire import Crypto, identity
from wire.errors import TokenError, UnknownSenderError
from wire.messages import Enrolled, EnrolRequest, Refused


class Enrolment:
    """Turns a valid token into an enrolled device; the same key may ask again and is told again."""

    def __init__(self, store: Store, keys: Identity, crypto: Crypto, federation: str) -> None:
        self._store = store
        self._keys = keys
        self._crypto = crypto
        self._federation = federation

    def redeem(
        self, token_id: str, request: EnrolRequest, now_s: float
    ) -> tuple[Enrolled | Refused, str]:
        """Answer a request whose signature is its own key's.

        Returns:
            The answer, and the device's name when it is enrolled, else "".
        """
        try:
            secret = self._store.token_secret(token_id, request.public_key, now_s)
            if not hmac.compare_digest(
                identity.token_proof(secret, request.public_key), request.proof
            ):
                raise TokenError("the proof is not the token's")  # noqa: TRY301 - one place answers
        except TokenError as error:
            return Refused(EnrolRequest.KIND, error.reason, str(error)), ""
        device = identity.device_id(request.public_key)
        if self._store.is_revoked(device):
            reason = UnknownSenderError.reason
            return Refused(EnrolRequest.KIND, reason, "the device has been revoked"), ""
        certificate = self._keys.certify(device, request.public_key, now_s)
        self._store.redeem(token_id, device, request.public_key, request.device_class, now_s)
        return Enrolled(device, self._federation, certificate), device
