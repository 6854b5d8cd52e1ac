"""Policy: what may talk to what, decided without touching the machine.

Nothing here does I/O. Read it in the order in which data flows:

- `documents` turns YAML text into plain documents (bounded, duplicate keys refused), `parse*` turns those into the
  values of `model`: Namespaces, Pods, Nodes and policies, together a `Cluster`. Whatever is wrong is a `PolicyError`
  that names file, document and field.
- `labels`, `entity` and `identity` say whom a rule means; `numbering` gives everything a number that survives
  restarts.
- `compile` resolves a `Cluster` into the immutable `table.PolicyTable` of one node: the only hand-off to kernel and
  proxy. `ports`, `peers`, `terms`, `rows` and `rulesets` are its steps; `lookup` reads a table as the kernel does.
- `http` decides requests exactly as the proxies do, after the normalisation of `httppath`.
- `evaluate` is the reference interpreter: the same answers straight from the policies, without a table. Tests compare.
"""
