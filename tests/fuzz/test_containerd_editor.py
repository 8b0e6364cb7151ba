"""The editor of containerd's configuration: whatever stands there, it is edited rightly or not."""

from hypothesis import given
from hypothesis import strategies as st

from kata.containerd import config as editor
from kata.containerd import files, toml_statements
from kata.containerd import memory as containerd_memory
from tests.fuzz import effort
from tests.toml_reader import parse
from tests.unit.containerd.test_config import TWO, wanted
from tests.unit.containerd_documents import BEGIN, documents

PIECES = [
    *(
        "[",
        "]",
        "[[",
        "{",
        "}",
        '"',
        "'",
        '"""',
        "'''",
        "\\",
        "=",
        ",",
        ".",
        "#",
        "\n",
        "\r\n",
        "\r",
    ),
    *(
        "\ufeff",
        "\0",
        "\udcff",
        "\u2028",
        "version = 2\n",
        "version = 9\n",
        "imports = ['/x/*']\n",
    ),
    *(
        "imports = ['/x/[z-a]*']\n",
        'imports = ["/\\u0000", "/\\ud800*"]\n',
        f"version = {'9' * 5000}\n",
    ),
    *("[plugins]\n", "plugins = {}\n", "[plugins.'io.containerd.grpc.v1.cri']\n"),
    *("runtimes = { kata = {} }\n", "[plugins.cri.containerd.runtimes.kata]\n", "1 = 2\n"),
    *(f"{BEGIN}\n", "# kata charm: end\n", "# kata charm: was ", "a = 1979-05-27 07:32:00Z\n"),
]
TEXTS = effort.damaged(documents().map(lambda document: document[1]), PIECES)
MAIN = "/etc/containerd/config.toml"
MEMORY = """\
{"config": "/c", "binary": "/b", "release": [1, 7, 0], "stat": "1 2 3", "source": "s",
 "handlers": ["kata"], "sections": {"v2": "x"}, "known": ["kata"], "touched": ["/c"]}
"""
SCHEMAS = st.sampled_from(sorted(editor.CRI))


def reads(text):
    """What a TOML reader makes of a text; None where it is none."""
    try:
        return parse(text)
    except ValueError:  # both libraries' errors are of this kind
        return None


@effort.inputs(200)
@given(text=TEXTS, schema=SCHEMAS)
def test_any_text_is_edited_and_taken_back_or_refused(text, schema):
    try:
        before = editor.restore(text)
        added = editor.add(text, schema, TWO)
    except toml_statements.Malformed as refusal:
        assert str(refusal).isprintable()
        return
    assert editor.restore(added) == before, "taken back to the byte"
    assert editor.add(added, schema, TWO) == added, "twice is once"
    if reads(before) is not None:
        tree = reads(added)
        assert tree is not None, "what was TOML still is"
        runtimes = tree["plugins"][editor.CRI[schema]]["containerd"]["runtimes"]
        assert {"kata", "untrusted"} <= runtimes.keys()


@effort.inputs(100)
@given(text=TEXTS, schema=SCHEMAS)
def test_a_handler_that_others_wrote_anew_is_found_in_any_text(text, schema):
    known = wanted("kata", known=("kata", "old"))
    try:
        added = editor.add(text, schema, known)
        cleared = editor.restore(added, known.known)
    except toml_statements.Malformed:
        return
    assert not editor.has_block(cleared)


@effort.inputs(100)
@given(
    main=TEXTS,
    other=TEXTS,
    release=st.sampled_from([(1, 3, 0), (1, 6, 0), (1, 7, 0), (2, 1, 0), (2, 3, 0)]),
    touched=st.sampled_from([(), ("/x/a.toml",), ("/gone",)]),
)
def test_any_files_are_planned_for_or_refused_by_name(node, main, other, release, touched):
    node.lay({MAIN: main, "/x/a.toml": other})
    try:
        changes = files.plan(MAIN, node, release, TWO, touched)
    except toml_statements.Malformed as refusal:
        assert refusal.path in (MAIN, "/x/a.toml")
        return
    for path, text in changes.items():
        assert text != node.read(path)
    for path, text in changes.items():
        if text is None:
            node.remove(path)
        else:
            node.write(path, text)
    assert files.plan(MAIN, node, release, TWO, {*touched, *changes}) == {}, "twice is once"


@effort.inputs(100)
@given(text=effort.damaged(st.just(MEMORY), ["{", "[", "1", '"', "null", "]", "1e999", "\\ud800"]))
def test_any_memory_of_ours_is_read_or_none(node, text):
    node.lay({containerd_memory.WANTED: text})
    containerd_memory.load(node)
