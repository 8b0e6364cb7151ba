#!/usr/bin/env python3
"""Adds a Kata release to the charm's table of digests, from GitHub's release API.

GitHub computes a SHA-256 of every asset when it is uploaded, and hands it out as the field
`digest` of the asset (GitHub REST API, "Get a release by tag name"; assets from June 2025 on).
Kata publishes no such file of its own.

    tools/pin_release.py 4.1.0

GITHUB_TOKEN, if it is set, lifts GitHub's limit of 60 requests an hour.
"""

import argparse
import json
import os
import pathlib
import re
import sys
import urllib.error
import urllib.request

API = "https://api.github.com"
TABLE = pathlib.Path(__file__).resolve().parents[1] / "src/kata/release/digests.json"
SOURCE = "GitHub's release API"
# The archives that the charm may ask for; not those of other architectures, or of the tools.
_ARCHIVE = re.compile(r"kata-(go-)?static-[0-9][^/]*-(amd64|x86_64|arm64)\.tar\.(xz|zst)")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def main(argv: list[str]) -> int:
    """Pin the release that is asked for; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", help="the release, such as 4.1.0")
    parser.add_argument("--api", default=API, help="where GitHub's API is")
    parser.add_argument("--table", type=pathlib.Path, default=TABLE, help="the table to add it to")
    parser.add_argument(
        "--replace", action="store_true", help="believe GitHub where the table has another digest"
    )
    given = parser.parse_args(argv)
    if not _number(given.version):
        parser.error("which release? make pin-release VERSION=4.1.0")
    try:
        found = digests(fetch(given.api, given.version), given.version)
        table = json.loads(given.table.read_text())
        added = pin(table, given.version, found, replace=given.replace)
    except (OSError, ValueError) as error:
        print(f"pin_release: {error}", file=sys.stderr)
        return 1
    given.table.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
    for name, digest in sorted(found.items()):
        print(f"{digest}  {name}{'' if name in added else '  (known)'}")
    return 0


def fetch(api: str, version: str) -> dict[str, object]:
    """Return what GitHub says of a release.

    Raises:
        OSError: it does not answer, or has no such release.
        ValueError: the answer is no JSON.
    """
    url = f"{api}/repos/kata-containers/kata-containers/releases/tags/{version}"
    headers = {
        "Accept": "application/vnd.github+json",
        "User-Agent": "kata-charm",
        "X-GitHub-Api-Version": "2022-11-28",
    }
    if token := os.environ.get("GITHUB_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"{url}: {error.code} {error.reason}") from error


def digests(told: dict[str, object], version: str) -> dict[str, str]:
    """Return the SHA-256 of each archive of a release, as GitHub tells them.

    Raises:
        ValueError: it is another release, or there is no digest in it.
    """
    if told.get("tag_name") != version:
        raise ValueError(f"asked for {version}, got {told.get('tag_name')}")
    found: dict[str, str] = {}
    for asset in told.get("assets") or []:
        digest = _DIGEST.fullmatch(asset.get("digest") or "")
        if _ARCHIVE.fullmatch(asset["name"]) and digest:
            found[asset["name"]] = digest[1]
    if not found:
        raise ValueError(
            f"GitHub has no digest of {version}'s archives: it was uploaded before it made any"
        )
    return found


def pin(table: dict, version: str, found: dict[str, str], *, replace: bool = False) -> set[str]:
    """Add digests to the table, and return the names that are new to it.

    Raises:
        ValueError: the table has another digest of a file, and `replace` is not set.
    """
    row = table.setdefault(version, {"from": [], "files": {}})
    for name, digest in found.items():
        known = row["files"].get(name, digest)
        if known != digest and not replace:
            raise ValueError(
                f"{name} was {known}, and GitHub says {digest}: it was uploaded anew, or the table "
                "is wrong; find out, then give --replace"
            )
    added = {name for name, digest in found.items() if row["files"].get(name) != digest}
    row["files"] = dict(sorted((row["files"] | found).items()))
    if SOURCE not in row["from"]:
        row["from"].append(SOURCE)
    newest_first = sorted(table.items(), key=lambda each: _number(each[0]), reverse=True)
    table.clear()
    table.update(newest_first)
    return added


def _number(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
