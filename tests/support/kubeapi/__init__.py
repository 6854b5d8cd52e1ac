"""A double of the Kubernetes API server that speaks its wire protocol: HTTP/1.1, JSON, chunked watches.

`KubeApi` (control.py) runs one in a thread of its own and is what tests hold. The parts: `store` is etcd with its
revisions, `resources` what is served, `api` and `writes` what a request means, `watches` what a watch sends, `server`
the wire and its faults. It knows nothing of the agent.

Sources: kubernetes.io/docs/reference/using-api/api-concepts; k8s.io/apiserver pkg/endpoints/handlers,
pkg/storage/cacher, pkg/storage/etcd3. Where it is simpler: built-in objects have no schemas (of what is written
`schemas` checks custom ones by their definition, Events and Leases; nothing is defaulted), lists are atomic for
server-side apply, namespaces go at once with all that is in them, and nobody collects what has lost its owner
(`KubeApi.collect` does, when it is asked).
"""

from support.kubeapi.control import KubeApi
from support.kubeapi.resources import crd
from support.kubeapi.rights import Rule

__all__ = ["KubeApi", "Rule", "crd"]
