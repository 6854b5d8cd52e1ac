"""The proxy in a pod of its own (`proxy.managed: false`), and what the agent has to do with it then.

In the pod: `spliceway proxy-pod` makes a `plan` of the agent's configuration and becomes its `keeper`, which starts the
proxy, hands it the node's cgroup, and takes the next turn when another pod's proxy has gone. In the agent: the `door`,
where a keeper gets the cgroup, and the `supervisor`, which starts nothing and knows what runs. Both share one directory
of the node (`place`). ARCHITECTURE.md has why it is like this.
"""
