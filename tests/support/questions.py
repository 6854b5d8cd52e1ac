"""A thousand pods, two hundred policies and many questions, for `spliceway policy evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any


def write_world(directory: Path, *, queries: int) -> None:
    """Write `all.json` (pods and policies) and `queries.jsonl` there; the same ones every time."""
    random = Random(3)
    pods = [f"ns{number % 20}/pod{number}" for number in range(1000)]
    manifests: list[dict[str, Any]] = []
    for number, pod in enumerate(pods):
        namespace, name = pod.split("/")
        labels = {"app": f"app{number % 50}", "tier": random.choice("abc"), "own": str(number)}
        manifests.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": labels},
                "spec": {"nodeName": f"node{number % 7}"},
                "status": {"podIP": f"10.240.{number // 250}.{number % 250 + 1}"},
            }
        )
    for number in range(200):
        spec = {
            "podSelector": {"matchLabels": {"tier": random.choice("abc")}},
            "ingress": [
                {
                    "from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": f"app{number % 50}"}}}],
                    "ports": [{"port": random.choice((80, 443))}],
                },
                {"from": [{"ipBlock": {"cidr": f"203.0.{number}.0/24"}}]},
            ],
        }
        metadata = {"name": f"p{number}", "namespace": f"ns{number % 20}"}
        manifests.append(
            {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
        )
    (directory / "all.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
    with (directory / "queries.jsonl").open("w") as out:
        for number in range(queries):
            source = random.choice(pods) if number % 10 else f"203.0.{random.randrange(256)}.{random.randrange(256)}"
            query = {"from": source, "to": random.choice(pods), "port": random.choice((80, 443, 8080))}
            out.write(json.dumps(query) + "\n")
