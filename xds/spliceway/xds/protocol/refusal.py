"""What a client says of what it refuses: which resources it means, and how much of it is kept and shown. Pure.

Clients say what they like, up to the size of a request, and may quote what must not be shown.
"""

from __future__ import annotations

import re
from collections.abc import Collection

#: What stands for the value of a Secret where it would be shown.
HIDDEN = "(secret)"
#: Longest message that is kept, and what of it is kept for each resource that it is about, in characters.
LONGEST_MESSAGE, LONGEST_ABOUT = 8192, 2000
#: In so many characters names are looked for: more (names times the message) would hold up all other clients.
LOOKED_AT = 1 << 29
#: How Envoy begins when it has applied all listeners or clusters but those that it names (if one can't be decoded it
#: applies nothing), and how it ends when it had more than 4096 characters to say (both seen in Envoy 1.40).
_PARTLY, _CUT = "Error adding/updating ", "(truncated)"


def about(message: str, name: str) -> str:
    """The lines of a message that name this resource, or all of it where none does; at most LONGEST_ABOUT of them."""
    lines = [line for line in message.splitlines() if mentions(line, name)] if name in message else []
    return _cut("\n".join(lines) or message, LONGEST_ABOUT)


def mentions(message: str, name: str) -> bool:
    """Whether the name stands in the message by itself: `rule-set-1` does not in `rule-set-12`, cut off or not."""
    return name in message and re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\.\.\(trunc)", message) is not None


def names_all(message: str) -> bool:
    """Whether all that the message doesn't name of a set of listeners or clusters has been applied."""
    return message.startswith(_PARTLY) and not message.endswith(_CUT)


def shown_message(message: str, secrets: Collection[str]) -> str:
    """The message without these texts, cut to LONGEST_MESSAGE."""
    return _cut(without_secrets(message, secrets), LONGEST_MESSAGE)


def without_secrets(message: str, secrets: Collection[str]) -> str:
    """The message without these texts: a client may quote what it refuses."""
    for text in sorted(secrets, key=len, reverse=True):
        message = message.replace(text, HIDDEN)
    return message


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
