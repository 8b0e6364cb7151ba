"""The benchmarks run and say something, small: their figures are of no interest here."""

import json
import sys

import pytest

from tests.bench import __main__ as bench
from tests.bench import download, edit, fleet, meter, rows, unpack


def test_a_ratio_is_held_against_its_bound():
    slow = rows.Row("x", 3, "s", "y", 2, "at most 1.3 times", 1.3)
    assert (slow.ratio, slow.met) == (1.5, False)
    fast = rows.Row("x", 3, "s", "y", 2, "at least 0.9", 0.9, least=True)
    assert fast.met
    assert rows.Row("x", 3, "calls", bound=2).met is False
    assert rows.Row("x", 3, "s").met is None
    assert rows.row(json.loads(json.dumps(slow.data()))) == slow
    assert (
        rows.markdown([slow]).splitlines()[-1]
        == "| x | 3 s | 2 s (y) | 1.50 | at most 1.3 times | no |"
    )


def test_commands_are_measured_in_turn(tmp_path):
    log = tmp_path / "log"
    turns = {
        name: meter.Contender(
            ["sh", "-c", f"echo {name} $(cat {tmp_path}/in) >> {log}"], files=files
        )
        for name, files in {
            "a": [{f"{tmp_path}/in": "1"}, {f"{tmp_path}/in": "2"}],
            "b": [{f"{tmp_path}/in": "3"}],
        }.items()
    }
    costs = meter.measured(turns, 2)
    assert log.read_text().splitlines() == ["a 1", "b 3", "b 3", "a 2"]
    assert all(each.wall > 0 and each.memory > 0 for each in costs.values())


def test_seconds_of_others_are_taken_off(tmp_path):
    apart = tmp_path / "apart"
    contender = meter.Contender(["sh", "-c", f"echo 100 50 >> {apart}"], apart=str(apart))
    cost = meter.measured({"a": contender}, 1)["a"]
    assert cost.wall < -99
    assert -50 < cost.cpu < -49


def test_a_command_that_fails_is_no_figure():
    with pytest.raises(RuntimeError):
        meter.measured({"a": meter.Contender(["false"])}, 1)


@pytest.mark.parametrize(
    "measure",
    [
        lambda folder: edit.rows(1, (2_000, 4_000)),
        lambda folder: fleet.rows((1, 3)),
        lambda folder: unpack.rows(1, folder, 1 << 20, ("zst",)),
        lambda folder: download.rows(1, folder, 1 << 20),
    ],
    ids=["edit", "fleet", "unpack", "download"],
)
def test_each_subject_can_be_measured(measure, tmp_path):
    found = list(measure(tmp_path))
    assert found
    assert all(each.ours > 0 and each.what for each in found)


def test_a_fleet_asks_once_a_hook_and_never_all_at_once():
    fleet_of_100 = fleet.Fleet(100)
    fleet_of_100.run()
    hour = sum(fleet_of_100.between(1800, 3600)) * 2
    assert 1100 < hour < 1350  # 100 units, 12 hooks, and the leader's RuntimeClass
    assert fleet_of_100.waiting > 500
    assert max(fleet_of_100.between(fleet.OUTAGE[1], fleet.END)) < 45
    assert sum(fleet_of_100.between(*fleet.OUTAGE)) == 0


def test_a_table_and_json_come_of_it(tmp_path, monkeypatch, capsys):
    place = tmp_path / "bench.json"
    row = rows.Row("what", 1, "s", "other", 2, "at most 1.3 times", 1.3)
    monkeypatch.setattr(
        bench, "subjects", lambda rounds: {"one": lambda: [row], "two": lambda: 1 / 0}
    )
    monkeypatch.setattr(
        sys, "argv", ["bench", "--json", str(place), "--markdown", str(tmp_path / "t")]
    )
    assert bench.main() == 1
    told = json.loads(place.read_text())
    assert told["rows"][0]["ratio"] == 0.5
    assert "two" in told["failed"]
    assert told["after"]["cpus"]
    assert "0.50" in capsys.readouterr().out
