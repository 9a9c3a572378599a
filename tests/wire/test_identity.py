import hashlib
import hmac
import re

from hypothesis import given
from hypothesis import strategies as st

from wire import coordinator_id, device_id, token_proof, update_id

keys = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
contributions = st.tuples(texts, st.integers(1, 2**53), texts)


@given(keys)
def test_ids_are_sixteen_hex_characters_and_never_each_others(key: bytes) -> None:
    device, coordinator = device_id(key), coordinator_id(key)
    assert re.fullmatch("[0-9a-f]{16}", device)
    assert re.fullmatch("[0-9a-f]{16}", coordinator)
    assert device != coordinator


@given(one=keys, other=keys)
def test_other_keys_have_other_ids(one: bytes, other: bytes) -> None:
    assert (device_id(one) == device_id(other)) == (one == other)


@given(one=contributions, other=contributions)
def test_an_update_id_stands_for_one_federation_round_and_device(
    one: tuple[str, int, str], other: tuple[str, int, str]
) -> None:
    assert len(update_id(*one)) == 16
    assert (update_id(*one) == update_id(*other)) == (one == other)


@given(scope=texts, device=texts, moved=st.integers(0, 20))
def test_the_border_between_two_names_cannot_be_moved(scope: str, device: str, moved: int) -> None:
    both = scope + device
    shifted = (both[:moved], both[moved:])
    same = shifted == (scope, device)
    assert (update_id(scope, 1, device) == update_id(shifted[0], 1, shifted[1])) == same


@given(secret=keys, one=keys, other=keys)
def test_a_proof_is_bound_to_the_secret_and_to_the_key(
    secret: bytes, one: bytes, other: bytes
) -> None:
    proof = token_proof(secret, one)
    assert len(proof) == 32
    assert (proof == token_proof(secret, other)) == (one == other)
    assert (proof == token_proof(other, one)) == (secret == other)


def test_ids_are_computed_as_the_page_says() -> None:
    key = bytes(range(32))
    tagged = b"potluck device\x00" + (32).to_bytes(4, "little") + key
    assert device_id(key) == hashlib.sha256(tagged).hexdigest()[:16]
    parts = (b"digits", (12).to_bytes(8, "little"), b"0123456789abcdef")
    fields = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    expected = hashlib.sha256(b"potluck update\x00" + fields).digest()[:16]
    assert update_id("digits", 12, "0123456789abcdef") == expected
    proof = hmac.new(key, b"potluck enrol\x00" + key, hashlib.sha256).digest()
    assert token_proof(key, key) == proof
