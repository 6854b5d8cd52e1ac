"""EndpointSlices for tests, in short."""

from __future__ import annotations

from ipaddress import ip_address

from spliceway.policy.servicemodel import Endpoint


def ready(*addresses: object) -> tuple[Endpoint, ...]:
    """A ready endpoint for each of these addresses."""
    return tuple(Endpoint((ip_address(str(address)),)) for address in addresses)
