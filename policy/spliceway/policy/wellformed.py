"""What a request's target and host must look like before rules are asked, as expressions for Envoy (RE2, whole match).

They say what `httppath` and `http` refuse (docs/xds.md), for places where Envoy judges and no code of ours runs.
"""

from __future__ import annotations

# A path that two servers can't read differently, up to `?` (docs/xds.md). Not in it: `;`, controls, space, DEL, bytes
# >= 0x80, `\`; %25 %2e %2f %5c %3b, encoded controls and bytes >= 0x80; a bare or cut percent sign.
_PLAIN = r"[^?%;\\\x00-\x20\x7f-\xff]"
_ENCODED = r"%(?:2[0-46-9a-dA-D]|3[0-9ac-fAC-F]|[46][0-9a-fA-F]|5[0-9abd-fABD-F]|7[0-9a-eA-E])"
WELL_FORMED_PATH = rf"(?s)(?:{_PLAIN}|{_ENCODED})*(?:\?.*)?"

# Origin form. `*` and absolute targets get a 404 before they come here, CONNECT and HTTP/2 do come.
ORIGIN_FORM = r"(?s)/.*"

# A host without userinfo, as `policy.http` has it. Two Host headers arrive joined with a comma, an empty one empty.
WELL_FORMED_HOST = r"[A-Za-z0-9._~!$&'()*+=%:\[\]-]+"

# What is left of no path once dots are resolved and slashes merged, which makes `//` of nothing but slashes.
DOT_SEGMENTS = r"(?s)[^?]*/\.\.?(?:[/?].*)?"
DOUBLE_SLASHES = r"(?s)(?:[^?]*[^/?]//.*|//[^?].*)"
