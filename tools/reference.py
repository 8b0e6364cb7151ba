"""Write the reference pages, and the README's tables, from charmcraft.yaml.

Run with --check it only says whether they are up to date, and exits with 1 if they are not.
"""

import argparse
import itertools
import pathlib
import re
import sys
from typing import Any

import yaml

TOP = pathlib.Path(__file__).resolve().parents[1]
NOTE = "<!-- Made from charmcraft.yaml by `make reference`: change it there. -->"


def _charm() -> dict[str, Any]:
    return yaml.safe_load((TOP / "charmcraft.yaml").read_text(encoding="utf-8"))


def _prose(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(text: str) -> str:
    """Return a description as Markdown: what is indented in it is an example, line by line."""
    parts: list[str] = []
    for example, lines in itertools.groupby(text.splitlines(), lambda line: line.startswith("  ")):
        kept = list(lines)
        parts.append(
            "\n".join(["```toml", *(line.strip() for line in kept), "```"])
            if example
            else _prose(" ".join(kept))
        )
    return "\n\n".join(parts)


def _first_sentence(text: str) -> str:
    prose = _prose(text.partition("\n  ")[0])
    return (
        re.split(r"(?<=[.:]) (?=[A-Z0-9])", prose, maxsplit=1)[0]
        .rstrip(".:")
        .removesuffix(", such as")
    )


def _value(value: object) -> str:
    if value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def options_page(charm: dict[str, Any]) -> str:
    """Return the page of options."""
    lines = ["# Options", "", NOTE, "", "Set one with `juju config kata name=value`.", ""]
    for name, option in charm["config"]["options"].items():
        kind = {"int": "number", "boolean": "true or false"}.get(option["type"], "text")
        lines += [
            f"## {name}",
            "",
            f"*{kind}, default {_value(option.get('default', ''))}*",
            "",
            _paragraphs(option["description"]),
            "",
        ]
    return "\n".join(lines)


def actions_page(charm: dict[str, Any]) -> str:
    """Return the page of actions."""
    lines = ["# Actions", "", NOTE, "", "Run one with `juju run kata/0 name key=value`.", ""]
    for name, action in charm.get("actions", {}).items():
        lines += [f"## {name}", "", _prose(action["description"]), ""]
        if parameters := action.get("params"):
            lines += ["| parameter | type, default | meaning |", "|---|---|---|"]
            for key, parameter in parameters.items():
                default = f", {_value(parameter['default'])}" if "default" in parameter else ""
                lines.append(
                    f"| `{key}` | {parameter['type']}{default} |"
                    f" {_prose(parameter['description'])} |"
                )
            lines.append("")
    return "\n".join(lines)


def relations_page(charm: dict[str, Any]) -> str:
    """Return the page of relations and resources."""
    lines = ["# Relations and resources", "", NOTE, ""]
    lines += ["| endpoint | interface | scope | meaning |", "|---|---|---|---|"]
    for role in ("requires", "provides"):
        for name, endpoint in charm.get(role, {}).items():
            scope = endpoint.get("scope", "global")
            lines.append(
                f"| `{name}` ({role}) | {endpoint['interface']} | {scope} |"
                f" {_prose(endpoint['description'])} |"
            )
    lines += ["", "Attach a resource with `juju attach-resource kata name=file`.", ""]
    lines += ["| resource | meaning |", "|---|---|"]
    for name, resource in charm.get("resources", {}).items():
        lines.append(f"| `{name}` | {_prose(resource['description'])} |")
    return "\n".join([*lines, ""])


def options_table(charm: dict[str, Any]) -> str:
    """Return the README's table of options."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    lines += [
        f"| `{name}` | {_value(option.get('default', ''))} |"
        f" {_first_sentence(option['description'])} |"
        for name, option in charm["config"]["options"].items()
    ]
    return "\n".join(lines)


def actions_table(charm: dict[str, Any]) -> str:
    """Return the README's table of actions."""
    lines = ["| action | what it answers |", "|---|---|"]
    lines += [
        f"| `{name}` | {_first_sentence(action['description'])} |"
        for name, action in charm.get("actions", {}).items()
    ]
    return "\n".join(lines)


def _between(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def pages() -> dict[pathlib.Path, str]:
    """Return every file that is made, with its text."""
    charm = _charm()
    reference = TOP / "docs" / "reference"
    readme = (TOP / "README.md").read_text(encoding="utf-8")
    readme = _between(readme, "options", options_table(charm))
    readme = _between(readme, "actions", actions_table(charm))
    return {
        reference / "options.md": options_page(charm),
        reference / "actions.md": actions_page(charm),
        reference / "relations.md": relations_page(charm),
        TOP / "README.md": readme,
    }


def main() -> int:
    """Write what is not up to date, or only name it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    stale = [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        print(
            f"{path.relative_to(TOP)}: {'not up to date: make reference' if check else 'written'}"
        )
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
