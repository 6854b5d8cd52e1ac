"""What the agent serves, read strictly and pure: protobuf bodies -> ListenerConfig, RouteConfig, ClusterConfig.

`reading` has the three functions. `shapes` is how they read: a shape says what each field must be, and whatever is set
beside it is refused with its path. `names`, `filters` (RBAC and on-demand filters), `manager`, `listener` and `cluster`
are the shapes; `routes` reads rules, made of `conditions` (headers), `rules` (RBAC policies) and `changes` (mismatch
actions).

Nothing is ever skipped because it is not known: what the proxy can't enforce is an UnenforceableError.
"""
