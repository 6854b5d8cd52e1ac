"""The checks, one function each: `check(site, side, version)` returns its sentence, or raises what `talk` names.

`version` is that of the IP addresses. Sockets are non-blocking unless a check says otherwise.
"""
