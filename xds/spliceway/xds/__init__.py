"""What the HTTP proxy is told, and what it tells: the agent's side of xDS.

`policy` hands over rule sets; this package turns them into Envoy's resources, serves them on a Unix socket, knows what
was acknowledged, and takes the access log back as flows. It never sees YAML, and never a kernel map.

Pure, from rule set to bytes: `resources` (start here) puts together `listeners`, `routes` and `clusters` into a
`snapshot`, which `consistency` refuses when it would open a hole. Routes are made of `rules` (with conditions on
`headers`, on top of `rbac`) and `changes` (mismatch actions); `checks` refuses what can't be served exactly.
`bootstrap` is what Envoy itself is started with.

Pure, from request to response: `subscription` is the ACK/NACK machine of one type on one stream, `stream` the order in
which a client's changes go out. `status` says for people what was sent, acknowledged and refused.

With I/O: `server` is gRPC on the socket, `clients` knows the open streams and who waits for an acknowledgement, `wire`
and `accesslog` turn messages into values, `admin` asks Envoy's own admin interface.

docs/xds.md has the rules by number, what Envoy does with odd requests, and what it can't do.
"""
