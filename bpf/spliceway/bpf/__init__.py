"""The kernel side: programs, what they share with user space, and how a PolicyTable becomes their maps.

Read `c/abi.h` first: every struct, verdict and reason (of splices in `c/spliceabi.h`); `abi.py` is its checked
mirror. Then `c/policy.bpf.c` (TC: parse, decide, conntrack, steer) and `c/redirect.bpf.c` (sockops and sk_msg: the
splice, with join, ends, room).
`c/services.bpf.c` gives pods' sockets Services: `servicerows`, `services` and `socketlb` are its user space.
`source` flattens and names them, `loader` compiles them in a child that exits. `rows` turns a table into logical
rows, `staging` makes them live in one step, `attach` and `node` put programs and routes in place, `events`, `views`
and `revoke` look at what happens. All of it is behind `datapath.Datapath`; `types` are the values that cross the
border to the agent.
"""
