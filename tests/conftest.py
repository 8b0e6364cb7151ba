"""What every test can use: real files of other projects, where they are at hand."""

import pathlib

CORPUS = pathlib.Path(__file__).resolve().parents[2] / "shared" / "corpus"


def corpus(pattern: str) -> list[pathlib.Path]:
    """Return the corpus files that match; none where the corpus is absent."""
    return sorted(path for path in CORPUS.glob(pattern) if path.is_file())
