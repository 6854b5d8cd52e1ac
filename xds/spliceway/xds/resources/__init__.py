"""From rule sets to Envoy's resources, pure: `build` puts a snapshot together, `consistency` refuses one with a hole.

`listeners`, `routes` and `clusters` make the resources; routes are made of `rules` (with conditions on `headers`, on
top of `rbac`) and `changes` (mismatch actions). `checks` refuses what can't be served exactly. `bootstrap` is what
Envoy itself is started with, `settings` what all of them need to know of the node, `names` what they share.
"""
