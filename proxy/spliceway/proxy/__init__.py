"""The embedded HTTP proxy (h11 on uvloop), an xDS client of the agent: not built yet.

Until it is, the node's proxy is Envoy (`spliceway.agent.envoy` runs it, `spliceway.xds` configures it). The package is
here because the layers are: it will import `spliceway.policy` for the HTTP decision, and nothing of `bpf` or `xds`.
"""
