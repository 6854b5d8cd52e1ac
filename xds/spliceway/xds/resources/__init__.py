"""From rule sets to Envoy's resources, pure: `build` puts a snapshot together, `consistency` refuses one with a hole.

`listeners`, `routes` and `clusters` make the resources; routes are made of `rules` (with conditions on `headers`, on
top of `rbac`) and `changes` (mismatch actions). `checks` refuses what can't be served exactly. `bootstrap` is what
Envoy itself is started with, `settings` what all of them need to know of the node, `names` what they share.

Resources that others wrote: `protofiles` loads files of them (by `reading`, `scalars` and `messagetypes`), `validation`
checks them by the rules in their protos (`fieldrules`). `extra` are the user's own, beside policy's: `extrarules` and
`warming` say what they must not. `shape` is what policy's resources must be, `facts` what any resource has to do with
others (`walking` goes through it), `index` keeps these, and `consistency` refuses what dangles.
"""
