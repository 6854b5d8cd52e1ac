"""The three readers: a resource as the agent serves it, serialised, to what the proxy does with it."""

from __future__ import annotations

from spliceway.proxy.resources.cluster import cluster as read_cluster
from spliceway.proxy.resources.listener import listener as read_listener
from spliceway.proxy.resources.routes import routes as read_routes

__all__ = ["read_cluster", "read_listener", "read_routes"]
