"""Virtual nodes: a Kubernetes node and its pods, built from manifests out of network namespaces, cgroups and a bpffs.

Start at `testbed` (`Testbed.up`) and `node` (programs in pods). Below them: `plan` (pure: which node, address and name
each pod gets), `manifests` and `resolve` (what is read, and what is written for the agent), `wiring` (links and routes
of a node, a pod and the fabric between nodes), `runs` (run directories, locks, sweeping what dead runs left),
`cgroups`, `netns`, `mounts` and `processes`. `agentprocess` runs the agent on a node, `server` is an HTTP server for
pods, `commands` the CLI's `testbed`.

Nothing here touches the machine's own namespace, interfaces or root cgroup. The library is synchronous and not for use
inside an event loop. This file imports nothing: `server` starts once for every pod and should be quick.
"""
