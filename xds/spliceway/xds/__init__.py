"""What the HTTP proxy is told, and what it tells: the agent's side of xDS.

`policy` hands over rule sets; this package turns them into Envoy's resources, serves them over gRPC, knows what was
acknowledged, and takes the access log back as flows. It never sees policy YAML, and never a kernel map.

`resources` makes Envoy's resources from rule sets, `protocol` says what a client is to be told next (both pure), and
`server` tells it. `accesslog` reads what Envoy reports, `debug` shows all this to people and tools, `static` serves
resources from files. `envoyadmin` asks Envoy's own admin interface, `versions` knows which Envoy may run.

docs/xds.md has the rules by number, what Envoy does with odd requests, and what it can't do.
"""
