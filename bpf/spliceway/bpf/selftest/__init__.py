"""Proves the splice on this kernel: the same programs, on sockets and namespaces of the self-test's own.

`run.load_or_run` is the way in: a short-lived child process (`python -m spliceway.bpf.selftest`) builds a node with one
pod, plays both the pod's application and the proxy, and reports. What is bad switches its class of connections off.
"""
