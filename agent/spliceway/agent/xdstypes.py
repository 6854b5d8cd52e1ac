"""What people call the types of xDS resources. Pure, and imports nothing heavy: the command line uses it, too."""

from __future__ import annotations

#: Short name -> what else it may be called, in lower case.
_CALLED = {
    "LDS": ("listener", "listeners"),
    "RDS": ("route", "routes"),
    "CDS": ("cluster", "clusters"),
    "EDS": ("endpoint", "endpoints"),
    "SDS": ("secret", "secrets"),
    "ECDS": ("extension", "extensions"),
}
_SHORT = {word: short for short, words in _CALLED.items() for word in (short.lower(), *words)}
_CHOICES = ", ".join(f"{short} or {words[1]}" for short, words in _CALLED.items())


def short_type(text: str) -> str:
    """«LDS» of `LDS`, `lds`, `listener` or `Listeners`. Raises ValueError, which tells what there is."""
    found = _SHORT.get(text.lower())
    if found is None:
        raise ValueError(f"no type {text!r} (there are {_CHOICES})")
    return found
