"""`make audit`: an audit that did not take place is none."""

import importlib.util
import pathlib

import pytest

TOOL = pathlib.Path(__file__).parents[3] / "tools" / "audit.py"
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"], "description": ""}


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def package(name, *faults):
    return {"name": name, "version": "1.0", "vulns": list(faults)}


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        ([package("a"), package("b")], 0, "2 packages, no known fault"),
        ([package("a", FAULT)], 1, "a 1.0: PYSEC-1 (CVE-1), mended in 2.0"),
        ([package("a"), {"name": "b", "skip_reason": "x"}], 2, "NOT AUDITED"),
        ([package("a", FAULT), {"name": "b", "skip_reason": "x"}], 1, "PYSEC-1"),
        ([], 2, "NOT AUDITED"),
    ],
)
def test_an_answer_is_judged(audit, packages, status, words):
    ended, said = audit.judge({"dependencies": packages})
    assert ended == status
    assert words in "\n".join(said)
