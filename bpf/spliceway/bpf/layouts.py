"""What a map's elements mean, as one word for each map: two versions of the programs may share a map if it is the same.

The word is a digest of the map's definition and of every struct in it, by their text in `maps.h`, `abi.h`,
`spliceabi.h` and the load balancer's headers, without comments. A change of meaning without one of the text (an
enumerator that moves) must change the struct's text as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from spliceway.bpf.maps import layout
from spliceway.bpf.source import ROOT

_COMMENT = re.compile(r"//[^\n]*")
_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_MENTIONED = re.compile(r"struct (\w+)")
_WORD = re.compile(r"\b[A-Z][A-Z0-9_]+\b")
#: Structs that no definition mentions.
_CONTENT = {"events": "struct event", "fragments": "", "unspliced": ""}


def layouts(defines: Mapping[str, str]) -> dict[str, str]:
    """Map's name → digest (16 hex digits) of its layout in programs that are compiled with these definitions."""
    *headers, lines, lb_lines = (
        _COMMENT.sub("", (ROOT / name).read_text())
        for name in ("abi.h", "spliceabi.h", "lbabi.h", "maps.h", "lbmaps.h")
    )
    header, maps = "\n".join(headers), f"{lines}\n{lb_lines}"
    structs = dict(_STRUCT.findall(header) + _STRUCT.findall(maps))
    found = {}
    for name in layout(defines):
        (line,) = (each for each in maps.splitlines() if f'PIN("{name}")' in each)
        text = _closure(line + _CONTENT.get(name, ""), structs)
        shaped = {word: defines[word] for body in text[1:] for word in _WORD.findall(body) if word in defines}
        words = " ".join(" ".join(text).split()) + repr(sorted(shaped.items()))
        found[name] = hashlib.sha256(words.encode()).hexdigest()[:16]
    return found


def _closure(text: str, structs: Mapping[str, str]) -> list[str]:
    """A text, and those of all structs that it mentions, each once."""
    found, seen = [text], set[str]()
    for one in found:
        for name in _MENTIONED.findall(one):
            if name in structs and name not in seen:
                seen.add(name)
                found.append(structs[name])
    return found
