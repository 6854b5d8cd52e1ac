"""Reserved identities and the entities that policies name.

Sources: Cilium pkg/identity/numericidentity.go (numbers) and pkg/policy/api/entity.go (entities).
"""

from __future__ import annotations

from enum import Enum, IntEnum
from types import MappingProxyType

from spliceway.policy.labels import CLUSTER_KEY, Operator, Requirement, Selector, reserved


class Reserved(IntEnum):
    """Identities with fixed numbers, as in Cilium."""

    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10

    @property
    def label(self) -> str:
        """`reserved:remote-node`."""
        return reserved(self.name.lower().replace("_", "-"))


#: Labels of the reserved identities, by number.
RESERVED_LABELS = MappingProxyType({int(identity): (identity.label,) for identity in Reserved})


class Entity(Enum):
    """Entities that a rule may name in fromEntities and toEntities."""

    ALL = "all"
    WORLD = "world"
    WORLD_IPV4 = "world-ipv4"
    WORLD_IPV6 = "world-ipv6"
    HOST = "host"
    REMOTE_NODE = "remote-node"
    CLUSTER = "cluster"
    CLUSTER_MESH = "cluster-mesh"
    KUBE_APISERVER = "kube-apiserver"
    UNMANAGED = "unmanaged"
    INIT = "init"
    HEALTH = "health"
    INGRESS = "ingress"
    NONE = "none"


def _one(identity: Reserved) -> Selector:
    key = identity.label.removeprefix("reserved:")
    return Selector((Requirement("reserved", key, Operator.EXISTS),))


#: Everything of the cluster. The API server belongs to it wherever it runs.
_CLUSTER = (
    *(
        _one(identity)
        for identity in (
            Reserved.HOST,
            Reserved.REMOTE_NODE,
            Reserved.INIT,
            Reserved.HEALTH,
            Reserved.INGRESS,
            Reserved.KUBE_APISERVER,
            Reserved.UNMANAGED,
        )
    ),
    Selector((Requirement("k8s", CLUSTER_KEY, Operator.EXISTS),)),
)

#: What an entity means: an identity belongs to it when any of the selectors matches. A prefix outside the cluster with
#: an identity of its own (`cidr:…`) carries `reserved:world-ipv4` or `-ipv6` too, so that it stays part of the world.
#: `reserved:kube-apiserver` comes in addition to the other labels of an address of the Service default/kubernetes.
#: There is one cluster only, so a mesh of clusters is that one. Nobody is in init, health and ingress: Spliceway has
#: no endpoints without labels, no health endpoints and no ingress proxy of its own.
ENTITY_SELECTORS = MappingProxyType(
    {
        Entity.ALL: (Selector(),),
        Entity.WORLD: (_one(Reserved.WORLD), _one(Reserved.WORLD_IPV4), _one(Reserved.WORLD_IPV6)),
        Entity.WORLD_IPV4: (_one(Reserved.WORLD_IPV4),),
        Entity.WORLD_IPV6: (_one(Reserved.WORLD_IPV6),),
        Entity.HOST: (_one(Reserved.HOST),),
        Entity.REMOTE_NODE: (_one(Reserved.REMOTE_NODE),),
        Entity.CLUSTER: _CLUSTER,
        Entity.CLUSTER_MESH: _CLUSTER,
        Entity.KUBE_APISERVER: (_one(Reserved.KUBE_APISERVER),),
        Entity.UNMANAGED: (_one(Reserved.UNMANAGED),),
        Entity.INIT: (_one(Reserved.INIT),),
        Entity.HEALTH: (_one(Reserved.HEALTH),),
        Entity.INGRESS: (_one(Reserved.INGRESS),),
        Entity.NONE: (),
    }
)
