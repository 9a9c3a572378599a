from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from coordinator.enrolment import Enrolment
from coordinator.identity import (
    KEY_FILE,
    STORE_FILE,
    Identity,
    init_state,
    load_identity,
    make_tokens,
    write_tokens,
)
from coordinator.store import Store, StoreError
from fleet import SeededSecrets
from wire import BrokerAddressError, Ed25519, device_id, token_proof
from wire.messages import Enrolled, EnrolRequest, Refused
from wire.token import Token, read_tokens

CRYPTO = Ed25519()
NOW_S = 1.8e9


def key(number: int) -> bytes:
    return CRYPTO.signer(bytes([number]) * 32).public_key


@dataclass
class Desk:
    """A coordinator's state, and two tokens that it handed out."""

    directory: Path
    store: Store
    keys: Identity
    tokens: list[Token]

    def redeem(
        self, token: Token, public_key: bytes, *, now_s: float = NOW_S, secret: str | None = None
    ) -> tuple[Enrolled | Refused, str]:
        proof = token_proof(bytes.fromhex(secret or token.secret), public_key)
        request = EnrolRequest(public_key, proof, "pi-5")
        return Enrolment(self.store, self.keys, CRYPTO, "fed").redeem(
            token.token_id, request, now_s
        )


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    directory = tmp_path / "state"
    init_state(directory, SeededSecrets(1, "desk"))
    store, keys = Store(directory / STORE_FILE), load_identity(directory, CRYPTO)
    tokens = make_tokens(
        store,
        keys,
        count=2,
        broker="mqtt://127.0.0.1:1883",
        secrets=SeededSecrets(2, "tokens"),
        now_s=NOW_S,
    )
    yield Desk(directory, store, keys, tokens)
    store.close()


def refused(answer: tuple[Enrolled | Refused, str]) -> str:
    message, device = answer
    assert isinstance(message, Refused)
    assert (message.kind, message.reason, device) == (EnrolRequest.KIND, "bad_token", "")
    return message.detail


def test_a_token_makes_a_stranger_a_device_with_a_certificate(desk: Desk) -> None:
    message, device = desk.redeem(desk.tokens[0], key(1))
    assert isinstance(message, Enrolled)
    assert message.device == device == device_id(key(1))
    assert message.federation == "fed"
    row = desk.store.devices()[device]
    assert (row["public_key"], row["device_class"], row["revoked"]) == (key(1), "pi-5", None)
    certificate = x509.load_pem_x509_certificate(message.certificate)
    authority = x509.load_pem_x509_certificate(desk.keys.ca_certificate)
    certificate.verify_directly_issued_by(authority)
    assert certificate.subject.rfc4514_string() == f"CN={device}"
    public = certificate.public_key()
    assert isinstance(public, Ed25519PublicKey)
    assert public.public_bytes_raw() == key(1)


def test_the_same_key_may_ask_again_and_is_told_again_even_when_the_token_has_expired(
    desk: Desk,
) -> None:
    first = desk.redeem(desk.tokens[0], key(1))
    assert desk.redeem(desk.tokens[0], key(1)) == first
    message, device = desk.redeem(desk.tokens[0], key(1), now_s=NOW_S + 1e8)
    assert isinstance(message, Enrolled)
    assert device == first[1]
    assert len(desk.store.devices()) == 1


def test_a_stolen_token_that_has_been_used_enrols_nobody_else(desk: Desk) -> None:
    desk.redeem(desk.tokens[0], key(1))
    assert "another device" in refused(desk.redeem(desk.tokens[0], key(2)))
    assert set(desk.store.devices()) == {device_id(key(1))}


def test_a_token_that_has_expired_or_that_nobody_made_enrols_nobody(desk: Desk) -> None:
    late = desk.tokens[0].expires_at + 1.0
    assert "expired" in refused(desk.redeem(desk.tokens[0], key(1), now_s=late))
    invented = Token("00" * 8, "11" * 32, "mqtt://x", "", "22" * 32, 0.0)
    assert "unknown" in refused(desk.redeem(invented, key(1)))
    assert desk.store.devices() == {}


def test_a_proof_seen_on_the_wire_is_worth_nothing_to_another_key(desk: Desk) -> None:
    proof = token_proof(bytes.fromhex(desk.tokens[0].secret), key(1))
    desk_answers = Enrolment(desk.store, desk.keys, CRYPTO, "fed")
    thief = EnrolRequest(key(2), proof, "pi-5")
    assert "proof" in refused(desk_answers.redeem(desk.tokens[0].token_id, thief, NOW_S))
    assert desk.store.devices() == {}
    # And the token is still good for its owner.
    assert isinstance(desk.redeem(desk.tokens[0], key(1))[0], Enrolled)


def test_another_tokens_secret_is_refused(desk: Desk) -> None:
    answer = desk.redeem(desk.tokens[0], key(1), secret=desk.tokens[1].secret)
    assert "proof" in refused(answer)


def test_a_device_that_was_revoked_cannot_enrol_again_with_an_old_or_a_new_token(
    desk: Desk,
) -> None:
    _, device = desk.redeem(desk.tokens[0], key(1))
    desk.store.revoke(device, "owner_left")
    for token in desk.tokens:
        message, name = desk.redeem(token, key(1))
        assert isinstance(message, Refused)
        assert (message.reason, name) == ("unknown_sender", "")
    assert desk.store.devices()[device]["revoked"] == "owner_left"


def test_tokens_are_distinct_and_their_file_is_its_owners_alone(desk: Desk) -> None:
    assert len({token.secret for token in desk.tokens}) == 2
    assert len({token.token_id for token in desk.tokens}) == 2
    path = desk.directory / "tokens.jsonl"
    write_tokens(path, desk.tokens)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_tokens(path) == desk.tokens
    with pytest.raises(StoreError, match="exists already"):
        write_tokens(path, desk.tokens)


def test_a_broker_that_is_no_address_makes_no_token(desk: Desk) -> None:
    with pytest.raises(BrokerAddressError):
        make_tokens(
            desk.store,
            desk.keys,
            count=1,
            broker="http://example.org",
            secrets=SeededSecrets(3, "tokens"),
            now_s=NOW_S,
        )


def test_a_state_directory_is_made_once_and_its_keys_are_private(desk: Desk) -> None:
    before = (desk.directory / KEY_FILE).read_bytes()
    with pytest.raises(StoreError, match="already"):
        init_state(desk.directory, SeededSecrets(9, "other"))
    assert (desk.directory / KEY_FILE).read_bytes() == before
    for path in desk.directory.glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_directory_without_a_coordinator_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="coordinator init"):
        load_identity(tmp_path, CRYPTO)


def test_an_identity_comes_back_from_its_directory(desk: Desk) -> None:
    again = load_identity(desk.directory, CRYPTO)
    assert again.signer.public_key == desk.keys.signer.public_key
    assert replace(desk.keys, signer=again.signer).ca_certificate == again.ca_certificate
