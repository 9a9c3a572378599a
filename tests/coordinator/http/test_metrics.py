import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from coordinator.http import METRICS
from coordinator.http._metrics import LABEL_VALUES_MAX, Scrape, few
from tests.support.http_api import Api


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path)


def scraped(api: Api) -> dict[tuple[str, ...], float]:
    text = Scrape(api.desk).text().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_scraped_is_what_happened(api: Api) -> None:
    figures = scraped(api.play())
    expected = {
        ("potluck_broker_up",): 1.0,
        ("potluck_finished",): 1.0,
        ("potluck_rounds_total", "committed"): 3.0,
        ("potluck_rounds_total", "abandoned"): 0.0,
        ("potluck_round_open",): 0.0,
        ("potluck_updates_total", "counted"): 6.0,
        ("potluck_updates_open",): 0.0,
        ("potluck_devices", "unknown", "enrolled"): 3.0,
        ("potluck_spool_bytes",): 0.0,
        ("potluck_model_version", "latest"): 3.0,
        ("potluck_model_version", "stable"): 3.0,
    }
    assert {name: figures.get(name) for name in expected} == expected
    assert figures["potluck_mqtt_bytes_total", "sent"] > 1_000
    assert figures["potluck_model_loss",] > 0.0
    assert figures["process_resident_memory_bytes",] > 1e6


def test_every_metric_is_announced_with_its_kind_from_the_start(api: Api) -> None:
    text = Scrape(api.desk).text().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert kinds == {metric.name: metric.kind for metric in METRICS}


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"(potluck|process)_[a-z_]+", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert not re.search(r"_(ms|kb|mb|percent|count)(_|$)", metric.name)
        assert metric.says.endswith(".")


def test_no_label_grows_with_what_devices_send(api: Api) -> None:
    store = api.loopback.coordinator.store
    with store.transaction():
        for number in range(500):
            store.admit(f"{number:016x}", bytes(32), f"class-{number}", 1.0)
    store.add_incidents({("-", f"reason_{number}"): (1, "") for number in range(500)})
    figures = scraped(api)
    for name in ("potluck_devices", "potluck_incidents_total"):
        values = [value for key, value in figures.items() if key[0] == name]
        assert len(values) == LABEL_VALUES_MAX + 1
        assert sum(values) >= 500
    device = next(iter(store.devices()))
    assert not [key for key in figures if device in key]


def test_the_commonest_values_are_named_and_the_others_added_up() -> None:
    counts = {f"v{number:03}": float(number) for number in range(100)}
    named = few(counts)
    assert sum(named.values()) == sum(counts.values())
    assert set(named) == {f"v{number:03}" for number in range(68, 100)} | {"other"}
    assert few({"other": 3.0, "a": 1.0}) == {"other": 3.0, "a": 1.0}


def test_however_many_scrape_the_store_is_asked_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrape = Scrape(api.desk)
    asked = 0
    samples = Scrape.samples

    def counted(self: Scrape) -> object:
        nonlocal asked
        asked += 1
        return samples(self)

    monkeypatch.setattr(Scrape, "samples", counted)
    texts = {scrape.text() for _ in range(20)}
    assert (asked, len(texts)) == (1, 1)


def test_the_process_s_own_registry_is_left_alone(api: Api) -> None:
    scraped(api)
    assert not [family for family in REGISTRY.collect() if family.name.startswith("potluck")]


def test_the_answer_is_in_prometheus_own_format(api: Api) -> None:
    answer = api.ask("GET", "/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
