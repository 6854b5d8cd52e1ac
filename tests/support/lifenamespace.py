"""A namespace that is deleted with all that is in it, in any order, while its pods ask and are asked.

As its controller does: each kind for itself, pods with time to end, and the namespace goes last. Some pods
are deleted by force: then the object goes before the sandbox, and what a pod may not do it may not do until its end.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from support.cninode import CniPod
from support.lifenode import GATEWAYS, NODE_PORT, VERSIONS, LifeNode, dials_nobody, lets_in
from support.lifeprober import NONE, Prober

NAME = "shop"
#: Of the namespace that stays: `db` lets in buyers of namespaces with that label.
STAYS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: shop, namespace: default}
spec:
  podSelector: {matchLabels: {app: db}}
  policyTypes: [Ingress]
  ingress:
  - from: [{namespaceSelector: {matchLabels: {team: shop}}, podSelector: {matchLabels: {app: buyer}}}]
    ports: [{port: 80}]
"""
_NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME, "labels": {"team": "shop"}}}
_GOES = "---".join((dials_nobody("thief", NAME), lets_in("till", "buyer", NAME)))
_POLICIES = {"thief": ("cilium.io/v2", "CiliumNetworkPolicy"), "till": ("networking.k8s.io/v1", "NetworkPolicy")}


class Shop:
    """One such namespace, from its first object to its last."""

    def __init__(self, life: LifeNode, prober: Prober, seed: int) -> None:
        self._life, self._prober, self._random = life, prober, random.Random(seed)
        site = life.site
        site.api.put(_NAMESPACE, _GOES)
        self.pods = {name: site.pod(name, {"app": name}, namespace=NAME) for name in ("buyer", "thief", "till")}
        site.listen(self.pods["till"])
        for pod in self.pods.values():
            site.report(pod)

    def probe(self) -> dict[str, Callable[[], None]]:
        """Ask all the time. Gives what ends the questions whose answer changes when that goes."""
        life = self._life
        ends: dict[str, list[Callable[[], None]]] = {"thief": [], "till": [], "buyer": [], "pods": []}
        for version in VERSIONS:
            db, till = life.pods["db"].address(version), self.pods["till"].address(version)
            kinds: list[tuple[str, str | CniPod, str, str, int, int]] = [
                ("buyer", self.pods["buyer"], "shop/buyer→db", db, 200, 80),
                ("thief", self.pods["thief"], "shop/thief→node", GATEWAYS[version], NONE, NODE_PORT),
                ("pods", self.pods["thief"], "shop/thief→db", db, NONE, 80),
                ("till", "other", "other→shop/till", till, NONE, 80),
            ]
            for which, asks, name, address, right, port in kinds:
                way = life.way(asks, f"{name} v{version}", address, "/", right, port)
                ends[which].append(self._prober.add([way]))

        def end(which: str) -> None:
            for one in ends.pop(which, []):
                one()

        return {which: partial(end, which) for which in list(ends)}

    def goes(self) -> list[str]:
        """The namespace is deleted; what went, in this order."""
        api, ends = self._life.site.api, self.probe()
        time.sleep(0.5)
        api.put({**_NAMESPACE, "status": {"phase": "Terminating"}})
        stamp: Any = {"deletionTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        left: dict[str, list[tuple[str, str]]] = {f"policy {name}": [("policy", name)] for name in _POLICIES}
        ends["buyer"]()  # from now on it may be kept out
        for name in self.pods:
            steps = [("sandbox", name), ("object", name)]
            if self._random.random() < 0.5:
                steps.reverse()  # by force
            else:
                found = self._life.site.object(self.pods[name])
                api.put({**found, "metadata": {**found["metadata"], **stamp}})
            left[f"pod {name}"] = steps
        told = []
        while left:
            key = self._random.choice(sorted(left))
            what, name = left[key].pop(0)
            if not left[key]:
                del left[key]
            told.append(f"{what} {name}")
            self._go(what, name, ends)
            time.sleep(self._random.uniform(0.0, 0.5))
        api.drop("v1", "Namespace", NAME)
        return told

    def _go(self, what: str, name: str, ends: dict[str, Callable[[], None]]) -> None:
        api, pod = self._life.site.api, self.pods.get(name)
        if what == "policy":
            ends[name]()
            api.drop(*_POLICIES[name], f"{NAME}/{name}")
        elif what == "object":
            api.drop("v1", "Pod", f"{NAME}/{name}")
        else:
            assert pod is not None
            for which in ("thief", "pods") if name == "thief" else ("till",) if name == "till" else ():
                ends[which]()
            pod.delete()
            pod.gone()
