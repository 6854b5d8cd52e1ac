"""One worker's data path: from accepted connections to their servers and back.

`relay` is the whole of it: listeners, rules, limits, counters. A `connection` is a client's connection with the one to
its server; both are `end`s, sockets that are written without waiting. `sockets` makes and ends them, `wheel` has their
timeouts, `exchange` is the record of one request. What bytes mean is in `spliceway.proxy.http`.

Sockets are used directly, with uvloop's readiness events: what is read goes from one buffer for all connections to the
other socket at once, and memory belongs only to those connections that have something unsent.
"""
