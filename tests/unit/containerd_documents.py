"""Containerd configurations as people and programs write them: every form that TOML allows.

`documents()` first makes up a tree, then prints it with a form drawn for each table (a header, an
inline table, dotted keys), headers in any order, quotes of any kind, comments in between.
"""

import string
import sys

from hypothesis import strategies as st

PLUGINS = {
    "v1": "cri",
    "v2": "io.containerd.grpc.v1.cri",
    "v3": "io.containerd.cri.v1.runtime",
}

_words = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8)
BEGIN = (
    "# kata charm: begin, the charm keeps this part up and takes it away again, so edit elsewhere"
)
_texts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(
        [
            f"x\n{BEGIN}\ny\n# kata charm: end\n",
            "[plugins.cri.containerd.runtimes.kata]",
            "a\n[b]\n# kata charm: was c\n",
            "quote \" and ' and \\",
            "line\u2028separator",
        ]
    ),
)
_comments = st.one_of(
    st.just(""),
    st.sampled_from(
        [
            BEGIN.removeprefix("# "),
            f"{BEGIN}, a file of its own".removeprefix("# "),
            "kata charm: was [plugins]",
            "kata charm 2: end",
            "[plugins.cri] 'quoted\" ]]",
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12),
)
_scalars = st.one_of(
    st.booleans(), st.integers(-(10**9), 10**9), _texts, st.lists(_texts, max_size=3)
)
_options = st.sampled_from(
    [
        {},
        {"Runtime": "kata-runtime", "RuntimeRoot": "/usr/bin/kata-runtime"},
        {"RuntimeRoot": "/usr/bin/kata-runtime"},
        {"ConfigPath": "/etc/kata-containers/other.toml"},
        {"SystemdCgroup": True, "BinaryName": "/usr/bin/runc"},
    ]
)


@st.composite
def _handlers(draw):
    kinds = ["io.containerd.runc.v2", "io.containerd.kata.v2", "io.containerd.kata-qemu.v2"]
    handler = {"runtime_type": draw(st.sampled_from(kinds))}
    if draw(st.booleans()):
        handler["options"] = draw(_options)
    if draw(st.booleans()):
        handler[draw(_words)] = draw(_scalars)
    return handler


@st.composite
def _cri(draw):
    containerd = {}
    if draw(st.booleans()):
        containerd["snapshotter"] = "overlayfs"
    names = st.sampled_from(["runc", "kata", "untrusted", "kata-clh", "nvidia", "odd.name", "x y"])
    if draw(st.integers(0, 4)):
        containerd["runtimes"] = draw(st.dictionaries(names, _handlers(), max_size=4))
    if draw(st.booleans()):
        containerd["untrusted_workload_runtime"] = {
            "runtime_type": draw(st.sampled_from(["", "io.containerd.kata.v2"]))
        }
    cri = {"sandbox_image": "registry/pause:3.9"} if draw(st.booleans()) else {}
    if draw(st.integers(0, 4)):
        cri["containerd"] = containerd
    return cri


@st.composite
def trees(draw):
    """Return the schema of a configuration, and the configuration."""
    schema = draw(st.sampled_from(["v1", "v2", "v3"]))
    tree = draw(
        st.dictionaries(
            st.one_of(_words, _texts), st.one_of(_scalars, st.dictionaries(_words, _scalars))
        )
    )
    tree.pop("plugins", None)
    if schema != "v1":
        tree["version"] = int(schema[1])
    if draw(st.integers(0, 5)):
        plugins = draw(st.dictionaries(_words, st.dictionaries(_words, _scalars), max_size=2))
        tree["plugins"] = plugins
        if draw(st.integers(0, 5)):
            plugins[PLUGINS[schema]] = draw(_cri())
    return schema, tree


@st.composite
def documents(draw, in_order=sys.version_info < (3, 11)):
    """Return the schema of a configuration, and the configuration as text.

    TOML lets tables come in any order; tomlkit, the only parser there is before Python 3.11, has
    trouble with that.
    """
    schema, tree = draw(trees())
    printer = _Printer(draw)
    printer.table((), tree, implicit=True)
    first, *others = printer.sections
    sections = [first, *(others if in_order else draw(st.permutations(others)))]
    text = "\n".join(line for section in sections for line in section)
    if draw(st.booleans()):
        text += "\n"
    if draw(st.integers(0, 3)) == 0:
        text = text.replace("\n", "\r\n")
    return schema, text


class _Printer:
    def __init__(self, draw):
        self.draw = draw
        self.sections = []

    def table(self, path, table, *, implicit):
        lines = []
        self.sections.append(lines)
        below = [(k, v) for k, v in table.items() if isinstance(v, dict)]
        printed = [k for k, v in table.items() if not isinstance(v, dict)]
        headers = []
        for key, value in below:
            form = self.draw(st.sampled_from(["header", "header", "inline", "dotted"]))
            if form == "header" or (form == "dotted" and not value):
                headers.append(key)
            else:
                printed.append(key)
                if form == "inline":
                    lines.append(self.line(f"{self.key(key)} = {self.value(value)}"))
                else:
                    lines += self.dotted(self.key(key), value)
        for key, value in table.items():
            if not isinstance(value, dict):
                lines.append(self.line(f"{self.key(key)} = {self.value(value, multiline=True)}"))
        if path and (printed or not headers or not implicit or self.draw(st.booleans())):
            dotted = self.dot().join(self.key(part) for part in path)
            lines.insert(0, self.line(f"[{dotted}]"))
        for key in headers:
            self.table((*path, key), table[key], implicit=True)

    def dotted(self, prefix, table):
        lines = []
        for key, value in table.items():
            whole = prefix + self.dot() + self.key(key)
            if isinstance(value, dict) and value and self.draw(st.booleans()):
                lines += self.dotted(whole, value)
            else:
                lines.append(self.line(f"{whole} = {self.value(value)}"))
        return lines

    def line(self, said):
        comment = self.draw(_comments)
        above = self.draw(_comments)
        said = self.draw(st.sampled_from(["", "", "  ", "\t"])) + said
        said += f" # {comment}" if comment else ""
        return f"# {above}\n{said}" if above else said

    def dot(self):
        return self.draw(st.sampled_from([".", ".", " . "]))

    def key(self, key):
        bare = key and set(key) <= set(string.ascii_letters + string.digits + "_-")
        return key if bare and self.draw(st.integers(0, 3)) else self.quoted(key)

    def value(self, value, *, multiline=False):
        if isinstance(value, dict):
            pairs = (f"{self.key(k)} = {self.value(v)}" for k, v in value.items())
            return "{ " + ", ".join(pairs) + " }"
        if isinstance(value, list):
            gap = "\n  # in between ]\n" if multiline and self.draw(st.booleans()) else " "
            return f"[{gap}" + f",{gap}".join(map(self.quoted, value)) + f"{gap}]"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            plain = not set(value) & {"'", "\r"} and value.replace("\n", "").isprintable()
            if multiline and plain and self.draw(st.booleans()):
                return f"'''\n{value}'''"
            return self.quoted(value)
        return str(value)

    def quoted(self, value):
        literal = "'" not in value and value.isprintable()
        if literal and self.draw(st.booleans()):
            return f"'{value}'"
        odd = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t"}
        return (
            '"'
            + "".join(odd.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in value)
            + '"'
        )
