from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.config import Rounds
from coordinator.http import ROUTES, document
from tests.support.http_api import Api
from tests.support.json_schema import problems
from wire import RemoteProtocolError, npz, tensors_digest

pytestmark = pytest.mark.slow  # each plays a whole federation, or serves one

DOCUMENT = document(ROUTES, "1.0")
READS = [route for route in ROUTES if route.method == "GET" and route.gives is not None]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    made = Api(tmp_path_factory.mktemp("api")).play()
    made.loopback.coordinator.count_incident("-", RemoteProtocolError("nobody knows it"))
    made.loopback.inject(0, b"garbage")
    made.loopback.coordinator.stop()
    return made


def filled(path: str, api: Api) -> str:
    device = api.get("/v1/devices")["items"][0]["device"]
    return path.format(number=2, version=2, device=device)


# -- the document --------------------------------------------------------------------------------


def test_the_document_has_every_route_and_no_other(api: Api) -> None:
    stated = {
        (method.upper(), path)
        for path, operations in api.get("/openapi.json")["paths"].items()
        for method in operations
    }
    assert stated == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize("route", READS, ids=lambda route: route.path)
def test_every_answer_is_what_the_document_says(api: Api, route: Any) -> None:
    body = api.get(filled(route.path, api))
    operation = DOCUMENT["paths"][route.path]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert problems(body, schema, DOCUMENT["components"]["schemas"]) == []


def test_the_validator_of_these_tests_finds_what_is_wrong(api: Api) -> None:
    body = api.get("/v1/models/2")
    schema = {"$ref": "#/components/schemas/Version"}
    components = DOCUMENT["components"]["schemas"]
    assert problems(body, schema, components) == []
    assert problems({**body, "version": "2"}, schema, components)
    assert problems({**body, "metrics": {"loss": "low"}}, schema, components)
    del body["digest"]
    assert problems(body, schema, components)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if "$ref" in value else [])
            for inner in value.values():
                yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    found = set(references(DOCUMENT))
    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert found
    assert found <= known


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does() -> None:
    operations = [op for path in DOCUMENT["paths"].values() for op in path.values()]
    assert len({op["operationId"] for op in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"].endswith("."), operation
    for route in ROUTES:
        secured = "security" in DOCUMENT["paths"][route.path][route.method.lower()]
        assert secured == route.writes


def test_the_document_s_parameters_are_those_that_are_taken(api: Api) -> None:
    for route in READS:
        stated = DOCUMENT["paths"][route.path]["get"]["parameters"]
        assert [p["name"] for p in stated if p["in"] == "path"] == list(route.names)
        unknown = api.ask("GET", filled(route.path, api) + "?no_such=1")
        assert unknown.status_code == 400, route.path


# -- what is read --------------------------------------------------------------------------------


def test_the_federation_says_what_its_file_says_and_how_it_is(api: Api) -> None:
    read = api.get("/v1/federation")
    assert read["name"] == "toy"
    assert read["config"]["rounds"]["cohort"] == 2
    state = read["state"]
    assert (state["version"], state["last_round"], state["finished"]) == (3, 3, True)
    assert (state["aliases"], state["devices"], state["round"]) == ({"stable": 3}, 3, None)


def test_an_open_round_is_seen_as_it_is(tmp_path: Path) -> None:
    api = Api(tmp_path)
    loopback = api.loopback
    loopback.start()
    while not loopback.coordinator.rounds.round.updates:
        loopback.now_s += 0.05
        loopback.coordinator.wake(loopback.now_s)
        loopback.deliver()
    api.glance()
    read = api.get("/v1/federation")["state"]["round"]
    assert (read["number"], read["invited"], read["needed"], read["stored"]) == (1, 2, 2, 1)
    (first,) = api.get("/v1/rounds")["items"]
    assert (first["status"], first["closed_at"]) == ("open", None)
    assert {device["lease_until"] is None for device in api.get("/v1/devices")["items"]} == {
        True,
        False,
    }


def test_rounds_are_counted_as_in_the_ledger(api: Api) -> None:
    rounds = api.get("/v1/rounds")["items"]
    assert [(r["number"], r["status"], r["version"]) for r in rounds] == [
        (1, "committed", 1),
        (2, "committed", 2),
        (3, "committed", 3),
    ]
    rows = api.loopback.coordinator.store.updates()
    for read in rounds:
        assert read["counted"] == sum(r.round == read["number"] and bool(r.counted) for r in rows)
        assert read["sent_bytes"] > 0
    detail = api.get("/v1/rounds/2")
    assert detail["round"] == rounds[1]
    assert len(detail["invited"]) == 2


@pytest.mark.parametrize(
    "path",
    ["/v1/rounds", "/v1/updates", "/v1/devices", "/v1/models", "/v1/releases", "/v1/incidents"],
)
@pytest.mark.parametrize("limit", [1, 2, 500])
def test_pages_together_are_the_whole_list(api: Api, path: str, limit: int) -> None:
    whole = api.pages(path, 500)
    assert whole
    assert api.pages(path, limit) == whole


def test_updates_are_filtered_by_round_and_device(api: Api) -> None:
    everything = api.pages("/v1/updates", 500)
    device = everything[0]["device"]
    assert api.pages("/v1/updates?round=2", 1) == [u for u in everything if u["round"] == 2]
    assert api.pages(f"/v1/updates?device={device}", 1) == [
        u for u in everything if u["device"] == device
    ]
    assert api.get(f"/v1/updates?round=2&device={'0' * 16}")["items"] == []


def test_participation_adds_up(api: Api) -> None:
    (unknown,) = api.get("/v1/participation")["classes"]
    assert (unknown["device_class"], unknown["devices"], unknown["counted"]) == ("unknown", 3, 6)
    assert (unknown["share_of_devices"], unknown["share_of_counted"]) == (1.0, 1.0)


def test_a_download_is_the_model_that_devices_have(api: Api, tmp_path: Path) -> None:
    answer = api.ask("GET", "/v1/models/3/download")
    assert answer.status_code == 200
    path = tmp_path / "model.npz"
    path.write_bytes(answer.content)
    with path.open("rb") as file:
        tensors: Any = npz.read(file)
    schema = api.loopback.coordinator.models.schema
    assert tensors_digest(schema, tensors) == api.get("/v1/models/3")["digest"]
    tag = answer.headers["etag"]
    same = api.ask("GET", "/v1/models/3/download", headers={"if-none-match": tag})
    assert (same.status_code, same.content) == (304, b"")


def test_what_is_not_there_is_404_and_says_what_is(api: Api) -> None:
    for path, says in (
        ("/v1/models/9", "the latest is 3"),
        ("/v1/models/9/download", "the latest is 3"),
        ("/v1/rounds/9", "the last is 3"),
        ("/v2/rounds", "nothing is served"),
        ("/", "nothing is served"),
    ):
        answer = api.ask("GET", path)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found"), path
        assert says in answer.json()["detail"]


def test_tensors_that_are_kept_no_more_are_a_conflict(api: Api) -> None:
    answer = api.ask("GET", "/v1/models/1/download")
    assert (answer.status_code, answer.json()["error"]) == (409, "conflict")
    assert "no longer kept" in answer.json()["detail"]


def test_health_and_readiness_say_what_is_wrong(tmp_path: Path) -> None:
    api = Api(tmp_path)
    assert api.get("/healthz") == {"status": "ok", "reasons": []}
    api.link_up = False
    api.glance()
    assert api.get("/healthz")["status"] == "ok"
    answer = api.ask("GET", "/readyz")
    assert (answer.status_code, answer.json()["reasons"]) == (503, ["the broker is not there"])
    object.__setattr__(api.status, "steady_s", api.status.steady_s - 31.0)
    assert api.ask("GET", "/healthz").status_code == 503


def test_a_store_that_cannot_be_read_is_503_and_no_traceback(tmp_path: Path) -> None:
    api = Api(tmp_path)
    object.__setattr__(api.desk, "state_dir", tmp_path / "gone")
    for path in ("/v1/rounds", "/metrics"):
        answer = api.ask("GET", path)
        assert (answer.status_code, answer.json()["error"]) == (503, "unavailable"), path
    assert api.ask("GET", "/readyz").status_code == 503


def test_a_read_sees_one_moment_and_never_waits_for_the_writer(tmp_path: Path) -> None:
    api = Api(tmp_path).play()
    with api.loopback.coordinator.store.transaction():
        api.loopback.coordinator.store.put("half", b"done")
        assert len(api.get("/v1/models")["items"]) == 4


def test_the_audit_trail_is_empty_where_there_is_none(tmp_path: Path) -> None:
    assert Api(tmp_path).get("/v1/audit") == {"items": [], "next": None}


def test_an_asynchronous_round_has_whom_it_invited_and_what_it_collected(tmp_path: Path) -> None:
    rounds = Rounds(mode="async", count=4, cohort=3, quorum=0.5, over_select=1.5, deadline_s=60.0)
    made = Api(tmp_path, rounds=rounds, count=8).play()
    store = made.loopback.coordinator.store
    assert any(row.collected_in != row.round for row in store.updates())
    items = made.get("/v1/rounds")["items"]
    for item in items:
        rows = store.updates(item["number"])
        assert item["counted"] == sum(row.counted is True for row in rows)
        assert item["counted"] >= 2, "no version without its quorum"
        invited = made.get(f"/v1/rounds/{item['number']}")["invited"]
        assert item["invited"] == len(invited)
    assert sum(item["invited"] for item in items) >= len(store.updates())
