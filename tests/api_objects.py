"""RuntimeClasses and Nodes as the Kubernetes API server keeps them, with who manages which field.

What is here follows Kubernetes 1.34: names and texts of the refusals, canonical quantities, the
immutable handler, and server-side apply (a small part of structured-merge-diff). The tests of this
module run against a real API server too, see test_api_server.py.
"""

import copy
import dataclasses
import datetime as dt
import decimal
import itertools
import re
import uuid

Path = tuple[str, ...]

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class Refusal(Exception):
    """The request is not done; `status` is the Status object that says why."""

    def __init__(self, code, reason, message, details=None):
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            **({} if details is None else {"details": details}),
            "code": code,
        }


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of object: where it lives, and which of its maps are one value."""

    name: str
    plural: str
    group: str
    version: str
    atomic: tuple[Path, ...] = ()

    @property
    def api_version(self):
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self):
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def path(self):
        return (
            f"/apis/{self.api_version}/{self.plural}" if self.group else f"/api/v1/{self.plural}"
        )

    def refusal(self, code, reason, name, message, **details):
        about = {"name": name, "group": self.group, "kind": self.plural, **details}
        return Refusal(code, reason, message, {key: each for key, each in about.items() if each})

    def not_found(self, name):
        return self.refusal(404, "NotFound", name, f'{self.resource} "{name}" not found')

    def invalid(self, name, field, value, why):
        shown = f'"{value}"' if isinstance(value, str) else value
        problem = f"Invalid value: {shown}: {why}"
        qualified = f"{self.name}.{self.group}" if self.group else self.name
        return Refusal(
            422,
            "Invalid",
            f'{qualified} "{name}" is invalid: {field}: {problem}',
            {
                "name": name,
                "group": self.group,
                "kind": self.name,
                "causes": [{"reason": "FieldValueInvalid", "message": problem, "field": field}],
            },
        )

    def same(self, name, live, uid):
        """Refuse to change another object than the one with this uid."""
        if uid is not None and live is None:
            message = (
                f'Operation cannot be fulfilled on {self.resource} "{name}": uid mismatch: the '
                f"provided object specified uid {uid}, and no existing object was found"
            )
            raise self.refusal(409, "Conflict", name, message)
        if uid is not None and uid != live["metadata"]["uid"]:
            raise self.invalid(name, "metadata.uid", uid, "field is immutable")


RUNTIME_CLASS = Kind(
    "RuntimeClass", "runtimeclasses", "node.k8s.io", "v1", (("scheduling", "nodeSelector"),)
)
NODE = Kind("Node", "nodes", "", "v1")
KINDS = (RUNTIME_CLASS, NODE)


class Objects:
    """The store: every object by kind and name."""

    def __init__(self):
        self.stored = {kind.plural: {} for kind in KINDS}
        self._versions = itertools.count(1001)

    # Reading

    def get(self, kind, name):
        try:
            return copy.deepcopy(self.stored[kind.plural][name])
        except KeyError:
            raise kind.not_found(name) from None

    def list(self, kind, selector=""):
        chosen = [
            {field: value for field, value in each.items() if field not in ("kind", "apiVersion")}
            for _, each in sorted(self.stored[kind.plural].items())
            if selects(selector, each["metadata"].get("labels", {}))
        ]
        return {
            "kind": f"{kind.name}List",
            "apiVersion": kind.api_version,
            "metadata": {"resourceVersion": str(next(self._versions))},
            "items": copy.deepcopy(chosen),
        }

    # Writing

    def create(self, kind, given, manager):
        name = given.get("metadata", {}).get("name", "")
        if name in self.stored[kind.plural]:
            message = f'{kind.resource} "{name}" already exists'
            raise kind.refusal(409, "AlreadyExists", name, message)
        return self._update(kind, None, given, manager)

    def patch(self, kind, name, patch, manager):
        """Merge a patch (RFC 7396); for maps a strategic merge is the same."""
        live = self.get(kind, name)
        kind.same(name, live, patch.get("metadata", {}).get("uid"))
        return self._update(kind, live, merge(live, patch), manager)

    def apply(self, kind, name, given, manager, force):
        """Server-side apply."""
        live = self.stored[kind.plural].get(name)
        kind.same(name, live, given.get("metadata", {}).get("uid"))
        applied = canonical(kind, name, copy.deepcopy(given))
        mine = leaves(kind, applied)
        owners = managers(live)
        if live and not owners:
            owners["before-first-apply", "Update"] = leaves(kind, live)
        conflicts = {
            (other, path)
            for (other, operation), owned in owners.items()
            if (other, operation) != (manager, "Apply")
            for path in mine & owned
            if at(live, path) != at(applied, path)
        }
        if conflicts and not force:
            raise conflict(kind, name, conflicts)
        merged = copy.deepcopy(live) or skeleton(kind, name)
        for path in owners.get((manager, "Apply"), set()) - mine:
            others = (owned for who, owned in owners.items() if who != (manager, "Apply"))
            if not any(path in owned for owned in others):
                remove(merged, path)
        for path in mine:
            place(merged, path, at(applied, path))
        for other, path in conflicts:
            for who, owned in owners.items():
                if who[0] == other and who != (manager, "Apply"):
                    owned.discard(path)
        owners[manager, "Apply"] = mine
        return self._store(kind, live, merged, owners)

    def delete(self, kind, name, uid=None):
        live = self.get(kind, name)
        there = live["metadata"]["uid"]
        if uid not in (None, there):
            message = f"the UID in the precondition ({uid}) does not match the UID in record ({there}). The object might have been deleted and then recreated"
            raise kind.refusal(409, "Conflict", name, message)
        del self.stored[kind.plural][name]
        details = {"name": name, "group": kind.group, "kind": kind.plural, "uid": there}
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {key: each for key, each in details.items() if each},
        }

    def _update(self, kind, live, given, manager):
        name = given.get("metadata", {}).get("name", "")
        made = canonical(kind, name, copy.deepcopy(given))
        before, after = leaves(kind, live or {}), leaves(kind, made)
        changed = {path for path in after if at(live, path) != at(made, path)}
        owners = managers(live)
        for owned in owners.values():
            owned.difference_update(changed, before - after)
        if owners or not live:  # without any manager, none is kept until the first apply
            owners.setdefault((manager, "Update"), set()).update(changed)
        return self._store(kind, live, made, owners)

    def _store(self, kind, live, made, owners):
        name = made["metadata"]["name"]
        check(kind, name, live, made)
        made = {"apiVersion": kind.api_version, "kind": kind.name, **made}
        entries = [
            {
                "manager": manager,
                "operation": operation,
                "apiVersion": kind.api_version,
                "time": (live and since(live, manager, operation, tree(owned))) or now(),
                "fieldsType": "FieldsV1",
                "fieldsV1": tree(owned),
            }
            for (manager, operation), owned in owners.items()
            if owned
        ]
        metadata = {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            **made["metadata"],
        }
        metadata.pop("managedFields", None)
        if entries:
            metadata["managedFields"] = entries
        if live and {**made, "metadata": {**metadata, "resourceVersion": ""}} == {
            **live,
            "metadata": {**live["metadata"], "resourceVersion": ""},
        }:
            return copy.deepcopy(live)
        made["metadata"] = {**metadata, "resourceVersion": str(next(self._versions))}
        self.stored[kind.plural][name] = made
        return copy.deepcopy(made)


# Rules of the kinds


def check(kind, name, live, made):
    if not NAME.fullmatch(name):
        raise kind.invalid(name, "metadata.name", name, "a lowercase RFC 1123 subdomain must …")
    for label, value in made["metadata"].get("labels", {}).items():
        if not isinstance(value, str) or not LABEL_VALUE.fullmatch(value):
            raise kind.invalid(name, "metadata.labels", value, f"a valid label must … ({label})")
    if kind is RUNTIME_CLASS:
        handler = made.get("handler", "")
        if not LABEL.fullmatch(handler):
            raise kind.invalid(name, "handler", handler, "a lowercase RFC 1123 label must …")
        if live and live["handler"] != handler:
            raise kind.invalid(name, "handler", handler, "field is immutable")


def canonical(kind, name, made):
    """Write quantities as the API server does, and drop what is empty."""
    for resource, amount in made.get("overhead", {}).get("podFixed", {}).items():
        try:
            made["overhead"]["podFixed"][resource] = quantity(str(amount))
        except ValueError:
            message = (
                f"{kind.name} in version {kind.version!r} cannot be handled as a {kind.name}: "
                "quantities must match the regular expression "
                "'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )
            raise Refusal(400, "BadRequest", message.replace("'", '"')) from None
    return made


SUFFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}


def quantity(text):
    """Return a quantity in its canonical form: a whole number with the largest fitting suffix."""
    read = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([numkMGTPE]|[KMGTPE]i)?", text)
    if not read:
        raise ValueError(text)
    number, suffix = decimal.Decimal(read[1]), read[2] or ""
    if suffix in BINARY:
        amount = number * 2 ** BINARY[suffix]
        if amount >= 1024 and amount == amount.to_integral_value():
            fitting = [each for each, power in BINARY.items() if amount % 2**power == 0]
            if fitting:
                return f"{int(amount) >> BINARY[fitting[-1]]}{fitting[-1]}"
            return f"{int(amount)}"
    amount = (
        number * decimal.Decimal(10) ** SUFFIXES.get(suffix, 0) if suffix not in BINARY else amount
    )
    if amount == 0:
        return "0"
    for each, power in reversed(SUFFIXES.items()):
        scaled = amount / decimal.Decimal(10) ** power
        if scaled == scaled.to_integral_value():
            return f"{int(scaled)}{each}"
    raise ValueError(text)


def selects(selector, labels):
    """Whether a label selector takes an object with these labels."""
    for term in filter(None, selector.split(",")):
        if "!=" in term:
            label, _, value = term.partition("!=")
            fits = labels.get(label) != value
        elif "=" in term:
            label, _, value = term.replace("==", "=").partition("=")
            fits = labels.get(label) == value
        else:
            fits = (term.lstrip("!") in labels) != term.startswith("!")
        if not fits:
            return False
    return True


# Fields and their managers

UNMANAGED = (
    ("apiVersion",),
    ("kind",),
    *(
        ("metadata", field)
        for field in (
            *("name", "uid", "resourceVersion", "creationTimestamp", "managedFields"),
            *("generation", "selfLink", "namespace"),
        )
    ),
)


def leaves(kind, made, prefix=()):
    """Return the paths of all values that can have a manager."""
    found = set()
    for field, value in made.items():
        path = (*prefix, field)
        if path in UNMANAGED:
            continue
        if isinstance(value, dict) and value and path not in kind.atomic:
            found |= leaves(kind, value, path)
        elif value is not None:
            found.add(path)
    return found


def tree(paths):
    """Return paths as FieldsV1."""
    made = {}
    for path in sorted(paths):
        here = made
        for field in path:
            here = here.setdefault(f"f:{field}", {})
    return made


def managers(live):
    """Return who manages what: (manager, operation) to paths."""
    entries = (live or {}).get("metadata", {}).get("managedFields", [])
    return {
        (entry["manager"], entry["operation"]): set(paths(entry["fieldsV1"]))
        for entry in entries
        if entry.get("manager")
    }


def paths(fields, prefix=()):
    for key, below in fields.items():
        if not key.startswith("f:"):
            continue
        path = (*prefix, key[2:])
        if below:
            yield from paths(below, path)
        else:
            yield path


def conflict(kind, name, conflicts):
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{manager}" using {kind.api_version}',
            "field": "." + ".".join(path),
        }
        for manager, path in sorted(conflicts)
    ]
    number = "1 conflict" if len(causes) == 1 else f"{len(causes)} conflicts"
    said = ", ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    return kind.refusal(
        409, "Conflict", name, f"Apply failed with {number}: {said}", causes=causes
    )


def since(live, manager, operation, fields):
    """Return when a manager's entry was last changed, if it is to stay as it is."""
    for entry in live["metadata"].get("managedFields", []):
        if (entry["manager"], entry["operation"], entry["fieldsV1"]) == (
            manager,
            operation,
            fields,
        ):
            return entry["time"]
    return None


# Nested maps


def at(made, path):
    for field in path:
        if not isinstance(made, dict) or field not in made:
            return None
        made = made[field]
    return made


def place(made, path, value):
    for field in path[:-1]:
        made = made.setdefault(field, {})
    made[path[-1]] = copy.deepcopy(value)


def remove(made, path):
    """Remove a value, and the maps that are empty without it."""
    if len(path) > 1:
        below = made.get(path[0], {})
        remove(below, path[1:])
        if below:
            return
    made.pop(path[0], None)


def merge(live, patch):
    merged = dict(live)
    for field, value in patch.items():
        if value is None:
            merged.pop(field, None)
        elif isinstance(value, dict):
            there = merged.get(field)
            merged[field] = merge(there if isinstance(there, dict) else {}, value)
        else:
            merged[field] = value
    return merged


def skeleton(kind, name):
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": {"name": name}}


def now():
    return dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
