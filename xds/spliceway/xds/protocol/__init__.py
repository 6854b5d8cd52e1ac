"""The xDS protocol without I/O and without a clock: what a client has, what it shall have, and what to say next.

`typeurls` has the resource types in the order in which a change goes out, `snapshot` what a client shall have.
`subscription` is one type on one stream in the state-of-the-world variant, `delta` in the incremental one, both on top
of `ledger` (sent, acknowledged, refused); `stream` puts the types of one client in order.
"""
