"""The charm's life on a node, in which hooks are killed and the power is cut: the next hook mends it.

`make soak` tries many more points than this; `KATA_SEED` chooses others.
"""

import os
import random

import pytest

from tests.node import juju, life, machine

SEED = os.environ.get("KATA_SEED", "1")
HOW = ("kill", "cut")
# A boot takes four times as long as a hook. `make soak` cuts the power in all stages.
CUT = ("install", "upgrade to Rust", "removal")


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return life.archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def undisturbed(booted, archives):
    """What each stage comes to when nothing disturbs it."""
    with machine.Machine.restored(juju.with_charm(booted)) as node:
        return life.Life(node, archives).undisturbed(life.SHORT)


@pytest.fixture(scope="module", params=HOW)
def disturbed(request, booted, archives, undisturbed):
    with machine.Machine.restored(juju.with_charm(booted)) as node:
        yield request.param, life.Life(node, archives), random.Random(SEED)


@pytest.mark.parametrize("stage", life.SHORT, ids=lambda stage: stage.name)
def test_the_next_hook_brings_the_node_to_the_same_state(disturbed, undisturbed, stage):
    how, unit, chance = disturbed
    if how == "cut" and stage.name not in CUT:
        unit.undergo(stage)
        assert not unit.faults(stage, undisturbed[stage.name])
        return
    times = 2 if how == "kill" else 1
    trials = list(unit.disturbed(stage, undisturbed, how, times, chance))
    assert any(trial.point for trial in trials), "nothing was cut short"
    for trial in trials:
        assert not trial.faults, f"{how} at {trial.point}"
