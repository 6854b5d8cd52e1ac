"""The mapping `istio` of the agent's configuration (docs/istio-sidecars.md, docs/istio-policy.md)."""

from __future__ import annotations

from typing import Literal

from spliceway.agent.configsections import Section
from spliceway.agent.errors import ConfigError
from spliceway.policy.fields import DNS_LABEL, DNS_SUBDOMAIN
from spliceway.policy.parse_authorization_source import TRUST_DOMAIN, IstioNames

Emission = Literal["off", "emit", "remove"]


class IstioConfig(Section, frozen=True):
    """`enabled`: what applications and their sidecars say to each other may be spliced, as `splice` allows.

    `trust_domain`, `root_namespace`: what the mesh calls itself in AuthorizationPolicies (meshConfig).
    `authorization_policies`: `emit` keeps translations of HTTP rules applied, `remove` takes away what that has made,
    `off` touches and asks nothing. The others are what the mesh is, see `spliceway policy istio translate`.
    """

    enabled: bool = False
    authorization_policies: Emission = "off"
    trust_domain: str = TRUST_DOMAIN
    root_namespace: str = IstioNames().root_namespace
    path_normalization: Literal["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "BASE"
    ambiguous: Literal["refuse", "pass"] = "refuse"
    without_own_node: bool = False

    @property
    def names(self) -> IstioNames:
        """As policies are read by them."""
        return IstioNames(self.trust_domain, self.root_namespace)


def check_istio(config: IstioConfig, file: str, *, writes: bool) -> None:
    """Refuse what a mesh can't call itself. `writes`: whether the agent may be elected to. Raises ConfigError."""
    if config.authorization_policies != "off" and not writes:
        reason = f"{config.authorization_policies} needs status.write: the agent that writes the status applies them"
        raise ConfigError(file, "istio.authorizationPolicies", reason)
    if not DNS_SUBDOMAIN.fullmatch(config.trust_domain):
        raise ConfigError(file, "istio.trustDomain", f"{config.trust_domain!r} is not a trust domain's name")
    if not DNS_LABEL.fullmatch(config.root_namespace):
        raise ConfigError(file, "istio.rootNamespace", f"{config.root_namespace!r} is not a namespace's name")
