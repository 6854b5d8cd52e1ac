"""The whole product on one virtual node, as a table: `spliceway demo`.

`requests.yaml` says what is asked and what must come of it, `plan` reads it, `probe` asks from inside the pods.
`evidence` finds what the agent says of each request (flows, sockets), `judge` compares that with what was expected and
with what the reference interpreter says (both pure), `speed` measures the same path spliced and not, with the parts of
the benchmark, `report` prints it all. `run` is the order of it.

This file imports nothing: `probe` starts once for every request and should be quick.
"""
