"""The mapping `istio` of the agent's configuration (docs/istio-sidecars.md, docs/istio-policy.md)."""

from __future__ import annotations

from typing import Literal

from spliceway.agent.configsections import Section

Emission = Literal["off", "emit", "remove"]


class IstioConfig(Section, frozen=True):
    """`enabled`: what applications and their sidecars say to each other may be spliced, as `splice` allows.

    `authorization_policies`: `emit` keeps translations of HTTP rules applied, `remove` takes away what that has made,
    `off` touches and asks nothing. The others are what the mesh is, see `spliceway policy istio translate`.
    """

    enabled: bool = False
    authorization_policies: Emission = "off"
    trust_domain: str = "cluster.local"
    root_namespace: str = "istio-system"
    path_normalization: Literal["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "BASE"
    ambiguous: Literal["refuse", "pass"] = "refuse"
    without_own_node: bool = False
