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
    UNMANAGED = "unmanaged"
    NONE = "none"


#: Entities that Cilium knows and Spliceway does not have yet.
UNSUPPORTED_ENTITIES = ("health", "init", "kube-apiserver", "ingress")


def _one(identity: Reserved) -> Selector:
    key = identity.label.removeprefix("reserved:")
    return Selector((Requirement("reserved", key, Operator.EXISTS),))


#: What an entity means: an identity belongs to it when any of the selectors matches. A prefix outside the cluster with
#: an identity of its own (`cidr:…`) carries `reserved:world-ipv4` or `-ipv6` too, so that it stays part of the world.
ENTITY_SELECTORS = MappingProxyType(
    {
        Entity.ALL: (Selector(),),
        Entity.WORLD: (_one(Reserved.WORLD), _one(Reserved.WORLD_IPV4), _one(Reserved.WORLD_IPV6)),
        Entity.WORLD_IPV4: (_one(Reserved.WORLD_IPV4),),
        Entity.WORLD_IPV6: (_one(Reserved.WORLD_IPV6),),
        Entity.HOST: (_one(Reserved.HOST),),
        Entity.REMOTE_NODE: (_one(Reserved.REMOTE_NODE),),
        Entity.CLUSTER: (
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
        ),
        Entity.UNMANAGED: (_one(Reserved.UNMANAGED),),
        Entity.NONE: (),
    }
)
