"""How long the fuzzing takes, and the damage that it does to what it has.

`KATA_FUZZ=100` tries a hundred times as many inputs; `make soak` does.
"""

import os
import re

import hypothesis
from hypothesis import strategies as st

EFFORT = int(os.environ.get("KATA_FUZZ", "1"))


def inputs(count):
    """Settings for a test of `count` inputs, in a run of ordinary length."""
    return hypothesis.settings(
        max_examples=count * EFFORT,
        deadline=None,
        # Making a finding smaller can take minutes: --hypothesis-seed brings it back at leisure.
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@st.composite
def damaged(draw, text, pieces, most=4):
    """A text to which a few things have happened: parts cut out, repeated, written over.

    Args:
        text: a strategy for what it was.
        pieces: what may be written into it.
        most: how many things happen.
    """
    text = draw(text)
    for _ in range(draw(st.integers(0, most))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["cut", "insert", "over", "repeat", "end", "word", "word"]))
        if kind == "word" and (
            words := [each.span() for each in re.finditer(r"\w+", text[:9000])]
        ):
            start, end = draw(st.sampled_from(words))
        piece = draw(st.sampled_from(pieces) | st.text(max_size=4)) if kind != "end" else ""
        if kind == "end":
            text = text[:start]
        elif kind == "repeat":
            text = text[:end] + text[start:end] + text[end:]
        else:
            text = (
                text[:start] + piece * (kind != "cut") + text[start if kind == "insert" else end :]
            )
    return text
