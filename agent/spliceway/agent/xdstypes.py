"""What people call the types of xDS resources. Pure, and imports nothing heavy: the command line uses it, too."""

from __future__ import annotations

_PREFIX = "type.googleapis.com/"
#: Short name -> what else it may be called, in lower case; the last is the name of the message, as in a type URL.
_CALLED = {
    "LDS": ("listener", "listeners", "envoy.config.listener.v3.listener"),
    "RDS": ("route", "routes", "envoy.config.route.v3.routeconfiguration"),
    "CDS": ("cluster", "clusters", "envoy.config.cluster.v3.cluster"),
    "EDS": ("endpoint", "endpoints", "envoy.config.endpoint.v3.clusterloadassignment"),
    "SDS": ("secret", "secrets", "envoy.extensions.transport_sockets.tls.v3.secret"),
    "ECDS": ("extension", "extensions", "envoy.config.core.v3.typedextensionconfig"),
}
_SHORT = {word: short for short, words in _CALLED.items() for word in (short.lower(), *words)}
_CHOICES = ", ".join(f"{short} or {words[1]}" for short, words in _CALLED.items())


def short_type(text: str) -> str:
    """«LDS» of `LDS`, `lds`, `listener`, `Listeners` or a type URL. Raises ValueError, which tells what there is."""
    found = _SHORT.get(text.lower().removeprefix(_PREFIX))
    if found is None:
        raise ValueError(f"no type {text!r} (there are {_CHOICES})")
    return found
