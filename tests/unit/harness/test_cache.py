"""What tests keep between runs: made once, and cleared away in the end."""

import os
import time

import pytest

from tests.node import cache


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("KATA_CHARM_CACHE", str(tmp_path))
    return tmp_path / "things"


def unused_for(place, hours):
    place.mkdir(parents=True)
    then = time.time() - hours * 3600
    os.utime(place, (then, then))


def test_a_thing_is_made_once():
    made = []
    for _ in range(2):
        place = cache.made("things", "one", made.append)
        assert place.is_dir()
    assert len(made) == 1


def test_what_fails_leaves_nothing(shelf):
    def fail(folder):
        (folder / "part").touch()
        raise ValueError

    with pytest.raises(ValueError):
        cache.made("things", "one", fail)
    assert [place for place in shelf.iterdir() if place.is_dir()] == []


@pytest.mark.parametrize(
    ("hours", "kept"),
    [
        ([24] * 5, 5),
        ([24 * 15] * 5, 0),
        ([24 + each for each in range(20)], cache.KEPT),
        ([each / 100 for each in range(20)], 20),
    ],
    ids=["a few", "a few of long ago", "many", "many that may be in use"],
)
def test_old_things_make_room_for_a_new_one(shelf, hours, kept):
    for number, each in enumerate(hours):
        unused_for(shelf / f"old{number}", each)
    cache.made("things", "new", lambda folder: None)
    left = {place.name for place in shelf.iterdir() if place.is_dir()}
    assert left == {"new"} | {f"old{number}" for number in range(kept)}
