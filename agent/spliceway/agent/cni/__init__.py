"""Pods as the container runtime wires them: the CNI plugin's server, what is wired, and the plugin's place on the node.

`c/` is the plugin; `wire` what goes between it and `server`; `netconf` what a runtime says; `veth` asks
the kernel which device is whose; `wirings` knows all pods of the node, also over a restart; `search` finds pods that
were there before; `conflist` and `place` put the plugin into the chain of the node; `network` is all of it for the
composition root.
"""
