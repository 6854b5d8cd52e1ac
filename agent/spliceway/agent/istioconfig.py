"""The mapping `istio` of the agent's configuration (docs/istio-sidecars.md)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from spliceway.agent.configsections import Section
from spliceway.policy.parse_authorization_source import TRUST_DOMAIN, IstioNames

_LABEL = "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"


class IstioConfig(Section, frozen=True):
    """`enabled`: what applications and their sidecars say to each other may be spliced, as `splice` allows.

    `trust_domain`, `root_namespace`: what the mesh calls itself in AuthorizationPolicies (meshConfig).
    """

    enabled: bool = False
    trust_domain: Annotated[str, Meta(pattern=rf"^{_LABEL}(\.{_LABEL})*$", max_length=253)] = TRUST_DOMAIN
    root_namespace: Annotated[str, Meta(pattern=f"^{_LABEL}$")] = IstioNames().root_namespace

    @property
    def names(self) -> IstioNames:
        """As policies are read by them."""
        return IstioNames(self.trust_domain, self.root_namespace)
