"""The mapping `istio` of the agent's configuration (docs/istio-sidecars.md)."""

from __future__ import annotations

from spliceway.agent.configsections import Section


class IstioConfig(Section, frozen=True):
    """`enabled`: what applications and their sidecars say to each other may be spliced, as `splice` allows."""

    enabled: bool = False
