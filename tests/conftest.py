"""What every test can use: real files of other projects, where they are at hand."""

import pathlib

import hypothesis

CORPUS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "corpus"


def corpus(pattern: str) -> list[pathlib.Path]:
    """Return the corpus files that match; none where the corpus is absent."""
    return sorted(path for path in CORPUS.glob(pattern) if path.is_file())


# How long an example takes says something of the machine, and nothing of the code.
hypothesis.settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any-machine")
