"""Texts of others on a terminal: names and messages of xDS clients, policies, requests may have escape sequences."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with all that a terminal might take for a command escaped; only line breaks stay."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text)


def one_line(text: str) -> str:
    """The same, with line breaks escaped as well."""
    return printable(text).replace("\n", "\\n")
