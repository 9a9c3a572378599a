from pathlib import Path
from typing import Any

import pytest

from coordinator.http import ROUTES
from tests.support.http_api import TOKEN, Api
from wire import RemoteProtocolError

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

WRITES = [route.path for route in ROUTES if route.writes]


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path).play()


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """For requests that are refused."""
    return Api(tmp_path_factory.mktemp("api")).play()


def filled(path: str, api: Api) -> str:
    return path.format(version=2, device=api.get("/v1/devices")["items"][0]["device"])


def deliver(api: Api) -> set[int]:
    while api.loopback.deliver():
        pass
    return {device.released.version for device in api.loopback.devices}


@pytest.mark.parametrize("path", WRITES)
@pytest.mark.parametrize(
    "header", ["", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", TOKEN, "Basic dDp0"]
)
def test_a_write_without_the_token_changes_nothing(unchanged: Api, path: str, header: str) -> None:
    before = unchanged.get("/v1/federation")["state"]
    headers = {"authorization": header} if header else {}
    answer = unchanged.ask("POST", filled(path, unchanged), headers=headers, json={})
    assert (answer.status_code, answer.json()["error"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert unchanged.get("/v1/federation")["state"] == before


def test_a_token_of_odd_characters_is_refused_as_any_other(unchanged: Api) -> None:
    answer = unchanged.ask(
        "POST", "/v1/pause", headers={b"authorization": "Bearer tö".encode("latin-1")}
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", WRITES)
def test_another_method_is_405(unchanged: Api, path: str, method: str) -> None:
    answer = unchanged.ask(method, filled(path, unchanged), token=TOKEN)
    assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_a_promotion_reaches_devices_and_says_who_made_it(api: Api) -> None:
    answer = api.post("/v1/models/2/promote")
    assert answer.status_code == 200
    release = answer.json()["release"]
    assert (release["alias"], release["version"], release["from_version"]) == ("stable", 2, 3)
    assert (release["actor"], answer.json()["changed"]) == ("http", True)
    assert deliver(api) == {2}
    assert api.post("/v1/models/2/promote", json={"alias": "stable"}).json()["changed"] is False


def test_a_rollback_reaches_devices_that_hold_a_newer_version(api: Api) -> None:
    api.post("/v1/models/2/promote")
    assert deliver(api) == {2}
    assert api.post("/v1/rollback").json()["release"]["version"] == 3
    assert deliver(api) == {3}
    refused = api.post("/v1/rollback")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    assert "version 3 is the first" in refused.json()["detail"]


def test_a_candidate_is_told_to_nobody(api: Api) -> None:
    assert api.post("/v1/models/2/promote", json={"alias": "candidate"}).status_code == 200
    assert deliver(api) == {3}
    assert api.get("/v1/federation")["state"]["aliases"] == {"stable": 3, "candidate": 2}


def test_a_version_that_cannot_be_promoted_is_refused(unchanged: Api) -> None:
    assert unchanged.post("/v1/models/9/promote").status_code == 404
    gone = unchanged.post("/v1/models/1/promote")
    assert (gone.status_code, gone.json()["error"]) == (409, "conflict")


def test_a_device_that_is_revoked_is_out_and_told(api: Api) -> None:
    device = api.get("/v1/devices")["items"][0]["device"]
    assert api.post(f"/v1/devices/{device}/revoke", json={"reason": "lost"}).json() == {
        "changed": True
    }
    deliver(api)
    assert api.get("/v1/devices")["items"][0]["revoked"] == "lost"
    assert [d.session.phase.name for d in api.loopback.devices].count("REVOKED") == 1
    assert api.post(f"/v1/devices/{device}/revoke").json() == {"changed": False}
    assert api.post(f"/v1/devices/{'0' * 16}/revoke").status_code == 404


def test_pause_and_resume_say_whether_anything_changed(api: Api) -> None:
    assert [api.post(f"/v1/{what}").json()["changed"] for what in ("pause", "pause")] == [
        True,
        False,
    ]
    api.glance()
    assert api.get("/v1/federation")["state"]["paused"] is True
    assert [api.post(f"/v1/{what}").json()["changed"] for what in ("resume", "resume")] == [
        True,
        False,
    ]


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"null", b"[]", b'"stable"', b'{"alias": 3}', b'{"alias": "best"}'),
        *(b'{"allias": ""}', b"[" * 5_000, b"\xff\xfe", b'{"alias": "\\ud800"}', b"NaN"),
    ],
)
def test_a_body_that_is_none_is_400_and_changes_nothing(unchanged: Api, body: bytes) -> None:
    answer = unchanged.ask("POST", "/v1/models/2/promote", token=TOKEN, content=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "bad_request"), answer.text
    assert unchanged.loopback.coordinator.registry.aliases() == {"stable": 3}


def test_a_coordinator_that_does_not_answer_is_503_and_forgets_the_request(tmp_path: Path) -> None:
    api = Api(tmp_path, call_s_max=0.05).play()
    api.stuck = True
    answer = api.post("/v1/models/2/promote")
    assert (answer.status_code, answer.json()["error"]) == (503, "unavailable")
    api.calls.run(api.loopback.now_s)
    assert api.loopback.coordinator.registry.aliases() == {"stable": 3}


def test_an_error_in_the_loop_is_an_answer_and_not_the_loop_s_end(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(api.loopback.coordinator.releases, "promote", broken)
    answer = api.post("/v1/models/2/promote")
    assert (answer.status_code, answer.json()["error"]) == (500, "failed")
    assert "secret" not in answer.text


def test_revoking_nobody_is_a_typed_error(api: Api) -> None:
    with pytest.raises(RemoteProtocolError, match="not enrolled"):
        api.loopback.coordinator.revoke("0" * 16, "operator", 0.0)
