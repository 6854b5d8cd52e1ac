"""The processes of the proxy: one supervisor, and workers that it starts and feeds.

    run ── supervisor ── pool ─(channel)─ worker ── relay
             ├ config, listeners    what is accepted, and the sockets for it
             ├ handover             a new proxy takes over from an old one
             └ admin, metrics

The supervisor has gRPC, protobuf and HTTP for its admin interface; workers import none of them, and share no memory
but a page of counters. Everything that a worker must know comes by its channel, listening sockets included.
"""
