"""The relation cos-agent: metrics, alert rules and a dashboard for the Canonical Observability Stack.

What is sent has the form of the charm library grafana_agent.v0.cos_agent (0.26): one JSON object
below `config` in the unit's data. The library itself is not used: pydantic and cosl, which it
imports, cost as much as the rest of a hook.
"""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ops

from kata.observability import services

ENDPOINT = "cos-agent"
KEY = "config"

_SOURCES = pathlib.Path(__file__).parent
_RULES = _SOURCES / "prometheus_alert_rules" / "kata.rules"
_DASHBOARD = _SOURCES / "grafana_dashboards" / "kata.json"
_PLACEHOLDER = "%%juju_topology%%"
# The reader takes any; the least costs a hook a millisecond.
_PRESET = 0


class Provider(ops.Object):
    """Our end of cos-agent.

    Args:
        charm: the charm.
    """

    def __init__(self, charm: ops.CharmBase) -> None:
        super().__init__(charm, "cos-agent-provider")
        self._charm = charm

    @property
    def is_asked(self) -> bool:
        """Whether anybody wants to know; one who goes at this event no longer does."""
        return bool(self._relations())

    def publish(self, targets: Iterable[services.Target]) -> bool:
        """Send what is to be scraped and how to read it.

        Args:
            targets: what serves metrics on this machine; none where another unit serves them.

        Returns:
            True if it has changed.
        """
        jobs = [
            {
                "job_name": f"{self._charm.app.name}_{target.name}",
                "metrics_path": "/metrics",
                "static_configs": [{"targets": [f"{services.ADDRESS}:{target.port}"]}],
            }
            for target in targets
        ]
        sent = {
            "metrics_alert_rules": rules(self._topology) if jobs else {},
            "log_alert_rules": {},
            "dashboards": [dashboard()] if jobs else [],
            "metrics_scrape_jobs": jobs,
            "log_slots": [],
        }
        text, changed = json.dumps(sent), False
        for relation in self._relations():
            ours = relation.data[self._charm.unit]
            if ours.get(KEY) != text:
                ours[KEY], changed = text, True
        return changed

    @property
    def _topology(self) -> dict[str, str]:
        return {
            "juju_model": self._charm.model.name,
            "juju_model_uuid": self._charm.model.uuid,
            "juju_application": self._charm.app.name,
            "juju_charm": self._charm.meta.name,
        }

    def _relations(self) -> list[ops.Relation]:
        return [each for each in self._charm.model.relations[ENDPOINT] if each.active]


def rules(topology: Mapping[str, str]) -> dict[str, Any]:
    """Return the alert rules, about one application alone.

    Args:
        topology: the labels that tell its metrics from another's.
    """
    import yaml

    application = {key: value for key, value in topology.items() if key != "juju_charm"}
    matchers = ", ".join(f'{key}="{value}"' for key, value in application.items())
    read: dict[str, Any] = yaml.safe_load(_RULES.read_text().replace(_PLACEHOLDER, matchers))
    model, uuid, name = application.values()
    for group in read["groups"]:
        # Unique among all that send rules to one Prometheus, and marked as ready for it.
        named = f"{model}_{uuid[:8]}_{name}_{group['name']}_rules"
        group["name"] = re.sub(r"[^a-zA-Z0-9_:]", "_", named)
        for rule in group["rules"]:
            rule["labels"] = {**topology, **rule["labels"]}
    return read


def dashboard() -> str:
    """Return the dashboard as it is sent: compact JSON, compressed by LZMA, in base64."""
    import base64
    import lzma

    compact = json.dumps(json.loads(_DASHBOARD.read_text()), separators=(",", ":"))
    return base64.b64encode(lzma.compress(compact.encode(), preset=_PRESET)).decode()
