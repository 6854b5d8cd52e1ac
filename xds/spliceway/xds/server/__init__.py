"""The control plane's I/O: gRPC on a Unix socket (and TCP), the streams that are open, and what happens on them.

`server` is the gRPC side, `listen` its sockets, `streams` one client's stream from beginning to end, `wire` turns
messages into values; `clients` knows streams, snapshots and who waits for an acknowledgement, `events` is what
happened, for people who watch.
"""

import os

# gRPC's own log has, at its default level, the last words of every connection that breaks: bytes of a stranger.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
