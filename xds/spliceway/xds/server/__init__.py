"""The control plane's I/O: gRPC on a Unix socket (and TCP), the streams that are open, and what happens on them.

`server` is the gRPC side, `listen` its sockets, `wire` turns messages into values; `clients` knows streams,
snapshots and who waits for an acknowledgement, `events` is what happened, for people who watch.
"""
