"""What the exporter answers, read by Prometheus' own client."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import parser

from kata.observability import exposition
from kata.observability.exposition import Family, Sample


def read(text):
    families = list(parser.text_string_to_metric_families(text))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_label_and_any_number_are_read_as_they_are(label, value):
    made = exposition.text([Family("a_b", "gauge", "It is.", [Sample(value, {"pod": label})])])
    told = label.encode("utf-8", "replace").decode()
    assert read(made) == {("a_b", (("pod", told),)): value}


def test_what_is_no_utf8_does_not_spoil_the_rest():
    made = exposition.text(
        [Family("a", "gauge", "It is.", [Sample(1, {"pod": "\udcff"}), Sample(2, {"pod": "x"})])]
    )
    assert made.encode()
    assert sorted(read(made).values()) == [1, 2]


def test_a_family_without_values_is_left_out():
    assert exposition.text([Family("a", "gauge", "It is.", [])]) == ""


def test_a_histogram_counts_upwards():
    seconds = exposition.Histogram((1, 2.5))
    for value in (0.5, 1, 2, 7):
        seconds.observe(value)
    found = read(exposition.text([Family("s", "histogram", "Times.", seconds.samples())]))
    assert found == {
        ("s_bucket", (("le", "1"),)): 2,
        ("s_bucket", (("le", "2.5"),)): 3,
        ("s_bucket", (("le", "+Inf"),)): 4,
        ("s_sum", ()): 10.5,
        ("s_count", ()): 4,
    }
