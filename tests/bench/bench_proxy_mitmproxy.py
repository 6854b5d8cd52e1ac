"""The filter of the benchmark as an addon of mitmproxy: what the rule set of the embedded proxy allows, no more.

mitmproxy loads this file in its own environment.
"""

from __future__ import annotations

import os
import re

from mitmproxy import http

_RULES = [(method, re.compile(path)) for method, path in (rule.split(" ") for rule in os.environ["RULES"].split(";"))]


def requestheaders(flow: http.HTTPFlow) -> None:
    """Refuse what no rule allows."""
    request = flow.request
    if not any(method == request.method and path.fullmatch(request.path) for method, path in _RULES):
        flow.response = http.Response.make(403, b"Access denied", {"Content-Type": "text/plain"})
