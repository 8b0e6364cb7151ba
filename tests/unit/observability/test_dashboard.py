"""The dashboard, as Grafana takes it: what it would show twice, or hide, if a word were another."""

import json

import pytest

import cos_agent
from kata.observability import measures
from kata.sandbox import sandboxes

PANELS = json.loads(cos_agent._DASHBOARD.read_text())["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
# What Prometheus and Juju's topology add to each sample, and no operator asks a table for.
ADDED = {
    *("Time", "__name__", "instance", "job"),
    *("juju_model", "juju_model_uuid", "juju_application", "juju_charm"),
}


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: panel["title"])
def test_a_question_is_asked_once(panel):
    # One that is asked for a range and for now as well has two answers, and a panel shows both.
    for target in panel["targets"]:
        now = bool(target.get("instant"))
        assert target["range"] is not now
        assert now is (panel["type"] == "table")


def test_the_table_has_what_tells_sandboxes_apart():
    (table,) = [panel for panel in DRAWN if panel["type"] == "table"]
    (organize,) = table["transformations"]
    assert organize["id"] == "organize"
    hidden = organize["options"]["excludeByName"]
    assert {name for name, is_hidden in hidden.items() if is_hidden} == ADDED
    labels = measures._labels(sandboxes.Sandbox("a")).keys()
    shown = organize["options"]["indexByName"]
    assert shown.keys() == {*labels, "juju_unit", "Value"}
    names = organize["options"]["renameByName"]
    assert names.keys() == shown.keys()
    (by,) = table["options"]["sortBy"]
    assert by == {"displayName": names["Value"], "desc": True}


def test_bars_do_not_count_one_failure_twice():
    (bars,) = [
        p
        for p in DRAWN
        if p["fieldConfig"]["defaults"].get("custom", {}).get("drawStyle") == "bars"
    ]
    # Windows as long as the steps between them, and long enough for two looks of Prometheus.
    assert "[$__interval]" in bars["targets"][0]["expr"]
    assert bars["interval"] == "5m"


def test_panels_lie_side_by_side():
    taken = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
