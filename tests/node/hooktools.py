#!/usr/bin/python3 -IS
"""Juju's hook tools, served from a JSON file.

`$HOOKTOOLS_STATE` names the file; `juju.py` describes what is in it. Arguments, output, messages
and exit statuses are those of Juju 3.6 (`internal/worker/uniter/runner/jujuc`).

    hooktools.py SOCKET    serve them all on a socket, as Juju's agent does

A hook calls these tools twenty times, and under emulation each start of Python takes half a second.
So the tools are links to one small program (`hooktool.c`), which only asks the server. For the same
reason nothing is imported here that starts slowly.
"""

import _json
import fcntl
import os
import sys
import time

TOOLS = {}
STATUSES = ("maintenance", "blocked", "waiting", "active")
FORMAT = ("format", "o", "output")
ALIASES = {"l": "log-level", "a": "all", "s": "strict", "relation": "r", "o": "output"}


class Json:
    """The C parts of the json module, which by itself takes as long as Python's whole start."""

    strict = False
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, int, float

    @classmethod
    def read(cls, text):
        """Return the value of a text.

        Raises:
            ValueError: it is not JSON.
        """
        try:
            value, end = _json.make_scanner(cls)(text.strip(), 0)
        except StopIteration:
            end = -1
        if end != len(text.strip()):
            raise ValueError("not JSON")
        return value

    @staticmethod
    def write(value):
        """Return a value as text."""
        quote = _json.encode_basestring_ascii
        encode = _json.make_encoder(None, repr, quote, None, ": ", ", ", False, False, True)
        return "".join(encode(value, 0))


class Refused(Exception):
    """A tool's error; exit status 2 means that it was called wrongly."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status


def tool(*values, switches=()):
    """Register a function as the tool of its name; `values` are the options that take one."""

    def register(function):
        TOOLS[function.__name__.replace("_", "-")] = (function, {*values, *FORMAT}, set(switches))
        return function

    return register


# Configuration, leadership, facts


@tool(switches=("all", "a"))
def config_get(state, options, words):
    config = {key: value for key, value in state["config"].items() if value is not None}
    return state["config"].get(words[0]) if words else config


@tool()
def is_leader(state, options, words):
    return state["leader"]


@tool()
def leader_get(state, options, words):
    return _one(state["leader_settings"], words)


@tool()
def leader_set(state, options, words):
    if not state["leader"]:
        raise Refused("cannot write leadership settings: not the leader")
    _merge(state["leader_settings"], _pairs(words))


@tool()
def unit_get(state, options, words):
    if words not in (["private-address"], ["public-address"]):
        raise Refused(f'unknown setting "{" ".join(words)}"', 2)
    return state["address"]


@tool("r", "relation", switches=("ingress-address", "bind-address", "egress-subnets"))
def network_get(state, options, words):
    if not words:
        raise Refused("no arguments specified", 2)
    if words[0] not in state["endpoints"]:
        raise Refused(f'no network config found for binding "{words[0]}"')
    if "r" in options:
        _relation(state, options)
    address = state["address"]
    bound = {"hostname": "", "value": address, "cidr": f"{address}/24", "address": address}
    return {
        "bind-addresses": [{"mac-address": "", "interface-name": "eth0", "addresses": [bound]}],
        "egress-subnets": [f"{address}/32"],
        "ingress-addresses": [address],
    }


@tool()
def goal_state(state, options, words):
    since = "2026-01-01 00:00:00Z"
    goal = {"status": "active", "since": since}
    relations = {}
    for relation in state["relations"].values():
        members = relations.setdefault(relation["endpoint"], {relation["app"]: goal})
        members.update(dict.fromkeys(relation["units"], goal))
    units = dict.fromkeys(state["planned_units"], goal)
    return {"units": units, "relations": relations}


@tool()
def resource_get(state, options, words):
    path = state["resources"].get(words[0] if words else "")
    if path is None:
        raise Refused(f"could not download resource: resource {' '.join(words)!r} not found")
    return path


@tool()
def credential_get(state, options, words):
    if not state["credential"]:
        raise Refused("cannot access cloud credentials")
    return state["credential"]


# Relations


@tool()
def relation_ids(state, options, words):
    endpoint = words[0] if words else os.environ.get("JUJU_RELATION")
    if not endpoint:
        raise Refused("no endpoint name specified", 2)
    found = [n for n, each in state["relations"].items() if each["endpoint"] == endpoint]
    return [f"{endpoint}:{number}" for number in sorted(found, key=int)]


@tool("r", "relation", switches=("app",))
def relation_list(state, options, words):
    relation = _relation(state, options)
    return relation["app"] if options.get("app") else sorted(relation["units"])


@tool("r", "relation", switches=("app",))
def relation_get(state, options, words):
    relation = _relation(state, options)
    key = words[0] if words and words[0] != "-" else None
    name = words[1] if len(words) > 1 else os.environ.get("JUJU_REMOTE_UNIT", "")
    if options.get("app"):
        name = (name or os.environ.get("JUJU_REMOTE_APP", "")).partition("/")[0]
    if not name:
        raise Refused("no unit id specified", 2)
    own = state["unit"].partition("/")[0]
    if name == own and relation["app"] != own and not state["leader"]:
        raise Refused("permission denied")
    if "/" in name and name != state["unit"] and name not in relation["data"]:
        raise Refused("permission denied")
    return _one(relation["data"].get(name, {}), [key] if key else [])


@tool("r", "relation", "file", switches=("app",))
def relation_set(state, options, words):
    relation = _relation(state, options)
    if options.get("app") and not state["leader"]:
        raise Refused("cannot write relation settings")
    name = state["unit"].partition("/")[0] if options.get("app") else state["unit"]
    _merge(relation["data"].setdefault(name, {}), {**_file(options), **_pairs(words)})


@tool("r", "relation")
def relation_model_get(state, options, words):
    return {"uuid": _relation(state, options)["model"]}


# Status and logs


@tool(switches=("application",))
def status_set(state, options, words):
    if not words:
        raise Refused("invalid args, require <status> [message]", 2)
    if words[0] not in STATUSES:
        expected = " ".join(STATUSES)
        raise Refused(f'invalid status "{words[0]}", expected one of [{expected}]', 2)
    if options.get("application") and not state["leader"]:
        raise Refused("this unit is not the leader")
    whose = "app" if options.get("application") else "unit"
    said = {"status": words[0], "message": " ".join(words[1:])}
    state["status"][whose] = said
    state["statuses"].append({"time": time.time(), "whose": whose, **said})


@tool(switches=("application", "include-data"))
def status_get(state, options, words):
    def details(said):
        given = {"message": said["message"], "status": said["status"]}
        return {**given, "status-data": {}} if options.get("include-data") else given

    if not options.get("application"):
        said = state["status"]["unit"]
        return details(said) if options.get("include-data") else said["status"]
    if not state["leader"]:
        raise Refused("this unit is not the leader")
    units = {state["unit"]: details(state["status"]["unit"])}
    return {"application-status": {**details(state["status"]["app"]), "units": units}}


@tool()
def application_version_set(state, options, words):
    if len(words) != 1:
        raise Refused("no version specified", 2)
    state["version"] = words[0]


@tool("log-level", "l", switches=("debug",))
def juju_log(state, options, words):
    if not words:
        raise Refused("no message specified", 2)
    level = "DEBUG" if options.get("debug") else options.get("log-level", "INFO")
    with open(os.environ["HOOKTOOLS_STATE"] + ".log", "a", encoding="utf-8") as file:
        file.write(Json.write([time.time(), level.upper(), " ".join(words)]) + "\n")


# Actions


@tool()
def action_get(state, options, words):
    value = _action(state)["params"]
    for part in words[0].split(".") if words else ():
        value = value.get(part) if isinstance(value, dict) else None
    return value


@tool()
def action_set(state, options, words):
    results = _action(state)["results"]
    for key, value in _pairs(words).items():
        *above, last = key.split(".")
        place = results
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value


@tool()
def action_fail(state, options, words):
    action = _action(state)
    action["failure"] = (
        " ".join(words) or "action failed without reason given, check action for errors"
    )


@tool()
def action_log(state, options, words):
    _action(state)["log"].append(" ".join(words))


# Secrets

DESCRIBED = ("label", "description", "expire", "rotate")


@tool(*DESCRIBED, "owner", "file")
def secret_add(state, options, words):
    content = {**_file(options), **_pairs(words)}
    if not content:
        raise Refused("missing secret value or filename", 2)
    state["secrets_made"] += 1
    number = f"{state['secrets_made']:020d}"
    known = {name: options.get(name, "") for name in DESCRIBED}
    owner = options.get("owner", "application")
    state["secrets"][number] = {"owner": owner, "revisions": [content], "tracked": 1, **known}
    state["secrets"][number]["grants"] = []
    return f"secret:{number}"


@tool(*DESCRIBED, "owner", "file")
def secret_set(state, options, words):
    secret = _own_secret(state, words[0])
    content = {**_file(options), **_pairs(words[1:])}
    if content and content != secret["revisions"][-1]:
        secret["revisions"].append(content)
    secret.update({name: options[name] for name in DESCRIBED if name in options})


@tool("label", switches=("peek", "refresh"))
def secret_get(state, options, words):
    label = options.get("label")
    if (words and words[0].startswith("secret:")) or (
        words and _number(words[0]) in state["secrets"]
    ):
        secret, words = _secret(state, words[0]), words[1:]
        if label:
            secret["label"] = label
    else:
        known = [each for each in state["secrets"].values() if label and each["label"] == label]
        if not known:
            name = words[0] if words else label
            raise Refused(f'secret "{name}" not found')
        secret = known[0]
    if secret["owner"] == "remote" and not secret["granted"]:
        raise Refused("permission denied")
    if options.get("refresh") or not secret["tracked"]:
        secret["tracked"] = len(secret["revisions"])
    at = len(secret["revisions"]) if options.get("peek") else secret["tracked"]
    return _one(secret["revisions"][at - 1], words)


@tool("label")
def secret_info_get(state, options, words):
    for number, secret in state["secrets"].items():
        asked = words and _number(words[0]) == number
        if secret["owner"] != "remote" and (asked or options.get("label") == secret["label"]):
            info = {"revision": len(secret["revisions"]), "owner": secret["owner"]}
            info["rotation"] = secret["rotate"] or "never"
            return {number: {**info, **{n: secret[n] for n in ("label", "description")}}}
    raise Refused(f'secret "{words[0] if words else options.get("label")}" not found')


@tool()
def secret_ids(state, options, words):
    return [number for number, each in state["secrets"].items() if each["owner"] != "remote"]


@tool("r", "relation", "unit")
def secret_grant(state, options, words):
    _relation(state, options)
    secret = _own_secret(state, words[0])
    secret["grants"].append({"relation": options["r"], "unit": options.get("unit")})


@tool("r", "relation", "app", "unit")
def secret_revoke(state, options, words):
    secret = _own_secret(state, words[0])
    kept = [each for each in secret["grants"] if each["relation"] != options.get("r")]
    secret["grants"] = kept


@tool("revision")
def secret_remove(state, options, words):
    secret = _own_secret(state, words[0])
    if "revision" in options:
        secret["revisions"][int(options["revision"]) - 1] = {}
    else:
        del state["secrets"][_number(words[0])]


# What the charm leaves with Juju: state, ports, a wish to reboot


@tool(switches=("strict", "s"))
def state_get(state, options, words):
    if words and options.get("strict") and words[0] not in state["stored"]:
        raise Refused(f'"{words[0]}" not found')
    return _one(state["stored"], words)


@tool("file")
def state_set(state, options, words):
    state["stored"].update({**_file(options), **_pairs(words)})


@tool()
def state_delete(state, options, words):
    state["stored"].pop(words[0], None)


@tool("endpoints")
def open_port(state, options, words):
    state["ports"] = sorted({*state["ports"], _port(words)})


@tool("endpoints")
def close_port(state, options, words):
    state["ports"] = sorted({*state["ports"]} - {_port(words)})


@tool(switches=("endpoints",))
def opened_ports(state, options, words):
    return state["ports"]


@tool(switches=("now",))
def juju_reboot(state, options, words):
    if state["action"] is not None:
        raise Refused("juju-reboot is not supported when running an action.")
    state["reboot"] = "now" if options.get("now") else "after"
    return None


# Parts that several tools share


def _relation(state, options):
    given = options.get("r") or os.environ.get("JUJU_RELATION_ID")
    if not given:
        raise Refused("no relation id specified", 2)
    endpoint, _, number = given.rpartition(":")
    relation = state["relations"].get(number)
    if relation is None or endpoint not in ("", relation["endpoint"]):
        raise Refused(f'invalid value "{given}" for option -r: relation not found', 2)
    return relation


def _action(state):
    if state["action"] is None:
        raise Refused("not running an action")
    return state["action"]


def _number(uri):
    return uri.removeprefix("secret:").rpartition("/")[2]


def _secret(state, uri):
    if _number(uri) not in state["secrets"]:
        raise Refused(f'secret "{_number(uri)}" not found')
    return state["secrets"][_number(uri)]


def _own_secret(state, uri):
    secret = _secret(state, uri)
    if secret["owner"] == "remote":
        raise Refused(f'secret "{_number(uri)}" not found')
    if secret["owner"] == "application" and not state["leader"]:
        raise Refused(f'secret "{_number(uri)}" not found')
    return secret


def _port(words):
    port = words[0] if words else ""
    return port if "/" in port or port == "icmp" else f"{port}/tcp"


def _one(settings, words):
    return settings.get(words[0]) if words and words[0] not in ("", "-") else settings


def _merge(settings, changes):
    for key, value in changes.items():
        if value == "":
            settings.pop(key, None)
        else:
            settings[key] = value


def _pairs(words):
    """Read `key=value`, and as secrets have it `key#base64=value` and `key#file=path`."""
    pairs = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise Refused(f'expected "key=value", got "{word}"', 2)
        key, _, how = key.partition("#")
        if how == "file":
            with open(value, encoding="utf-8") as file:
                value = file.read()
        pairs[key] = value
    return pairs


def _file(options):
    if "file" not in options:
        return {}
    if options["file"] == "-":
        text = "".join(sys.stdin)
    else:
        with open(options["file"], encoding="utf-8") as file:
            text = file.read()
    try:
        return Json.read(text)
    except ValueError:
        # Juju reads YAML; nearly everybody sends JSON.
        sys.path.append("/usr/lib/python3/dist-packages")
        import yaml

        return yaml.safe_load(text) or {}


def _parse(words, values, switches):
    """Split options from words as Juju does: they may be mixed, and `--` ends the options."""
    options, rest, words = {}, [], list(words)
    while words:
        word = words.pop(0)
        if word == "--":
            rest += words
            break
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        name, given, value = word.lstrip("-").partition("=")
        if name in switches:
            value = value.lower() not in ("false", "f", "0") if given else True
        elif name not in values:
            dashes = "--" if len(name) > 1 else "-"
            raise Refused(f"option provided but not defined: {dashes}{name}", 2)
        elif not given:
            if not words:
                raise Refused(f"option needs an argument: {word}", 2)
            value = words.pop(0)
        options[ALIASES.get(name, name)] = value
    return options, rest


def _shown(value, how):
    if how in ("json", "yaml"):
        return Json.write(value)
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return Json.write(value) if isinstance(value, dict) else str(value)


def answer(name, arguments, parent):
    """Run a tool; return its exit status, its output and its words on standard error.

    Args:
        name: the tool's.
        arguments: the words behind it.
        parent: the process that called it.
    """
    path = os.environ["HOOKTOOLS_STATE"]
    function, values, switches = TOOLS[name]
    with open(path + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with open(path, encoding="utf-8") as file:
            before = file.read()
        state = Json.read(before)
        try:
            options, words = _parse(arguments, values, switches)
            value = function(state, options, words)
        except Refused as refused:
            return refused.status, "", f"ERROR {refused}\n"
        after = Json.write(state)
        if after != before:
            with open(path + ".new", "w", encoding="utf-8") as file:
                file.write(after)
            os.replace(path + ".new", path)
    reads = not name.endswith(("-set", "-log", "-fail", "-grant", "-revoke", "-delete", "-port"))
    reads = reads and name not in ("juju-reboot", "secret-remove")
    if state["reboot"] == "now" and name == "juju-reboot":
        # Juju ends the hook there and then.
        os.kill(parent, 9)
    return 0, _shown(value, options.get("format", "smart")) + "\n" if reads else "", ""


def serve(path):
    """Answer on a socket what `hooktool.c` sends: as Juju's agent does, one call after the other."""
    import _socket

    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    listener.bind(path + ".new")
    listener.listen(16)
    os.rename(path + ".new", path)  # where it is there, it is served
    while True:
        descriptor, _ = listener._accept()
        with open(descriptor, "r+b", buffering=0) as stream:
            stream.write(_answered(_fields(stream.readall())))


def _fields(request):
    """Return the texts of a request: before each stands its length, in four bytes."""
    fields, at = [], 0
    while at < len(request):
        end = at + 4 + int.from_bytes(request[at : at + 4], "big")
        fields.append(os.fsdecode(request[at + 4 : end]))
        at = end
    return fields


def _answered(fields):
    """Return the reply to a request: a status, and as above what goes to the two outputs."""
    name, parent, folder, given, count, *rest = fields
    arguments, variables = rest[: int(count)], rest[int(count) :]
    os.environ.clear()
    os.environ.update(each.split("=", 1) for each in variables)
    os.chdir(folder)
    sys.stdin = [given]
    try:
        status, *said = answer(name, arguments, int(parent))
    except Exception as error:  # a bad call must not end the service
        status, said = 70, ["", f"ERROR {error!r}\n"]
    texts = [text.encode("utf-8", "surrogateescape") for text in said]
    return bytes([status]) + b"".join(len(text).to_bytes(4, "big") + text for text in texts)


if __name__ == "__main__":
    serve(sys.argv[1])
