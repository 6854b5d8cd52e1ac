"""Objects of a large cluster as the API server has them, and their wire formats, for the simulation of scale.

Pods look like those of a Deployment with one container and what the control plane adds: managed fields, tolerations, the
token's volume, conditions. The protobuf is the real wire format; numbers of fields are those of their order (one byte
each, as are nearly all in Kubernetes' own `generated.proto`), maps are entries of key and value.
"""
# ruff: noqa: E501

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

NAMESPACES = 500
_PODS_OF_A_NODE_NET = 24
_MANAGED = {
    "f:metadata": {
        "f:generateName": {},
        "f:labels": {".": {}, "f:app.kubernetes.io/name": {}, "f:app.kubernetes.io/version": {}, "f:pod-template-hash": {}},
        "f:ownerReferences": {".": {}, 'k:{"uid":"0b3b2c6e-7f3b-4b7e-9c1f-2d0c1a5b7e11"}': {}},
    },
    "f:spec": {
        "f:containers": {
            'k:{"name":"app"}': {
                ".": {}, "f:env": {".": {}, 'k:{"name":"LOG_LEVEL"}': {".": {}, "f:name": {}, "f:value": {}}},
                "f:image": {}, "f:imagePullPolicy": {}, "f:livenessProbe": {".": {}, "f:httpGet": {".": {}, "f:path": {}}},
                "f:name": {}, "f:ports": {".": {}, 'k:{"containerPort":8080,"protocol":"TCP"}': {".": {}}},
                "f:resources": {".": {}, "f:limits": {".": {}, "f:memory": {}}, "f:requests": {".": {}, "f:cpu": {}}},
                "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
            }
        },
        "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {}, "f:schedulerName": {},
        "f:securityContext": {}, "f:serviceAccount": {}, "f:serviceAccountName": {}, "f:terminationGracePeriodSeconds": {},
    },
}  # fmt: skip
_STATUS_MANAGED: dict[str, Any] = {
    "f:status": {
        "f:conditions": {
            f'k:{{"type":"{name}"}}': {".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:status": {}, "f:type": {}}
            for name in ("ContainersReady", "Initialized", "PodReadyToStartContainers", "Ready")
        },
        "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {}, "f:phase": {}, "f:podIP": {}, "f:podIPs": {}, "f:startTime": {},
    }
}  # fmt: skip


def steps_of_a_pod() -> int:
    """Events of a Pod from its creation to its end, as watchers of whole Pods see them.

    Created; bound; ContainerCreating; the address; started; ready. Then: not ready, deletion begun, containers ended, gone.
    """
    return 10


def _unique(*parts: object) -> str:
    text = hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


def _address(number: int) -> str:
    return f"10.{128 + number // 65536 % 128}.{number // 256 % 256}.{number % 256}"


def labels_of(workload: int) -> dict[str, str]:
    """What makes the identity of a workload's pods."""
    return {
        "app.kubernetes.io/name": f"service-{workload}",
        "app.kubernetes.io/instance": f"service-{workload}-production",
        "app.kubernetes.io/version": f"1.{workload % 40}.{workload % 7}",
        "app.kubernetes.io/component": ("backend", "frontend", "worker", "cache")[workload % 4],
        "team": f"team-{workload % 60}",
    }


def pod(number: int, workload: int, nodes: int) -> dict[str, Any]:
    """A running Pod as `kubectl get -o json --show-managed-fields` shows it."""
    template = hashlib.sha256(f"t{workload}".encode()).hexdigest()[:10]
    name = f"service-{workload}-{template}-{_unique('p', number)[:5]}"
    when = "2026-01-01T10:20:30Z"
    labels = {**labels_of(workload), "pod-template-hash": template}
    ip = _address(number)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "generateName": f"service-{workload}-{template}-",
            "namespace": f"namespace-{workload % NAMESPACES}",
            "uid": _unique("uid", number),
            "resourceVersion": str(900_000_000 + number),
            "creationTimestamp": when,
            "labels": labels,
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "checksum/config": _unique("c", workload)},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"service-{workload}-{template}",
                    "uid": _unique("rs", workload), "controller": True, "blockOwnerDeletion": True,
                }
            ],
            "managedFields": [
                {
                    "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": when,
                    "fieldsType": "FieldsV1", "fieldsV1": _MANAGED,
                },
                {
                    "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "time": when,
                    "fieldsType": "FieldsV1", "fieldsV1": _STATUS_MANAGED, "subresource": "status",
                },
            ],
        },
        "spec": {
            "volumes": [
                {
                    "name": "kube-api-access-x7k2p",
                    "projected": {
                        "sources": [
                            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                            {
                                "downwardAPI": {
                                    "items": [
                                        {
                                            "path": "namespace",
                                            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                                        }
                                    ]
                                }
                            },
                        ],
                        "defaultMode": 420,
                    },
                }
            ],
            "containers": [
                {
                    "name": "app",
                    "image": f"registry.example.com/team-{workload % 60}/service-{workload}:1.{workload % 40}.{workload % 7}",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                    "env": [
                        {"name": "LOG_LEVEL", "value": "info"},
                        {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
                        {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": f"service-{workload}", "key": "url"}}},
                    ],
                    "resources": {"limits": {"memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "256Mi"}},
                    "volumeMounts": [
                        {
                            "name": "kube-api-access-x7k2p", "readOnly": True,
                            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                        }
                    ],
                    "livenessProbe": _probe("/healthz"),
                    "readinessProbe": _probe("/ready"),
                    "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "imagePullPolicy": "IfNotPresent",
                    "securityContext": {"capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True},
                }
            ],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": f"service-{workload}",
            "serviceAccount": f"service-{workload}",
            "nodeName": f"node-{number % nodes}",
            "securityContext": {"runAsUser": 65532, "fsGroup": 65532},
            "schedulerName": "default-scheduler",
            "tolerations": [
                {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
                for what in ("not-ready", "unreachable")
            ],
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": kind, "status": "True", "lastProbeTime": None, "lastTransitionTime": when}
                for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
            ],
            "hostIP": _address(number % nodes),
            "hostIPs": [{"ip": _address(number % nodes)}],
            "podIP": ip,
            "podIPs": [{"ip": ip}, {"ip": f"fd00:10:{number >> 16:x}:{number & 0xFFFF:x}::1"}],
            "startTime": when,
            "containerStatuses": [
                {
                    "name": "app",
                    "state": {"running": {"startedAt": when}},
                    "ready": True,
                    "restartCount": 0,
                    "image": f"registry.example.com/team-{workload % 60}/service-{workload}:1.{workload % 40}.{workload % 7}",
                    "imageID": f"registry.example.com/service@sha256:{hashlib.sha256(str(workload).encode()).hexdigest()}",
                    "containerID": f"containerd://{hashlib.sha256(str(number).encode()).hexdigest()}",
                    "started": True,
                }
            ],
            "qosClass": "Burstable",
        },
    }  # fmt: skip


def _probe(path: str) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": 8080, "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
        "successThreshold": 1, "failureThreshold": 3,
    }  # fmt: skip


def metadata_only(whole: Mapping[str, Any]) -> dict[str, Any]:
    """PartialObjectMetadata of it: no spec, no status, so neither node nor addresses."""
    return {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": whole["metadata"]}


def endpoint_slice(number: int, length: int, nodes: int) -> dict[str, Any]:
    """One of a Service with so many ready endpoints."""
    namespace = f"namespace-{number % NAMESPACES}"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"service-{number}-{_unique('es', number)[:5]}",
            "namespace": namespace,
            "uid": _unique("slice", number),
            "resourceVersion": str(900_000_000 + number),
            "creationTimestamp": "2026-01-01T10:20:30Z",
            "labels": {
                "kubernetes.io/service-name": f"service-{number}",
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [_address(number * length + index)],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": f"node-{(number * length + index) % nodes}",
                "zone": f"zone-{index % 3}",
                "targetRef": {
                    "kind": "Pod", "namespace": namespace, "name": f"service-{number}-7d9c5b8f6-{index:05x}",
                    "uid": _unique("uid", number, index),
                },
            }
            for index in range(length)
        ],
    }  # fmt: skip


def identity_entry(whole: Mapping[str, Any]) -> dict[str, Any]:
    """What other nodes must know of a pod: its addresses, whose identity it is, and its name for flows."""
    metadata, status = whole["metadata"], whole["status"]
    return {
        "pod": f"{metadata['namespace']}/{metadata['name']}",
        "ips": [one["ip"] for one in status["podIPs"]],
        "identity": 1_000 + len(metadata["labels"]["app.kubernetes.io/name"]) * 7919,
    }


def identity_object(whole: Mapping[str, Any]) -> dict[str, Any]:
    """The same as an object of its own, owned by the Pod."""
    metadata = whole["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    managed = {
        "manager": "spliceway", "operation": "Update", "apiVersion": "spliceway.io/v1alpha1", "time": metadata["creationTimestamp"],
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:ownerReferences": {".": {}, f'k:{{"uid":"{metadata["uid"]}"}}': {}}}, "f:spec": {".": {}, "f:identity": {}, "f:ips": {}}},
    }  # fmt: skip
    owner = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    entry = identity_entry(whole)
    return {
        "apiVersion": "spliceway.io/v1alpha1",
        "kind": "PodIdentity",
        "metadata": {
            **{name: metadata[name] for name in kept},
            "ownerReferences": [owner],
            "managedFields": [managed],
        },
        "spec": {"ips": entry["ips"], "identity": entry["identity"]},
    }


def identity_slice(number: int, length: int) -> dict[str, Any]:
    """A slice of so many pods (thirty of each workload), with the labels of their identities once each."""
    first = number * length
    workloads = sorted({(first + index) // 30 for index in range(length)})
    return {
        "apiVersion": "spliceway.io/v1alpha1",
        "kind": "IdentitySlice",
        "metadata": {
            "name": f"ids-{_unique('ids', number)[:13]}",
            "uid": _unique("ids-uid", number),
            "resourceVersion": str(900_000_000 + number),
            "creationTimestamp": "2026-01-01T10:20:30Z",
        },
        "identities": [
            {
                "id": 1000 + workload,
                "labels": {
                    **labels_of(workload), "io.kubernetes.pod.namespace": f"namespace-{workload % NAMESPACES}",
                    "io.cilium.k8s.policy.serviceaccount": f"service-{workload}",
                },
            }
            for workload in workloads
        ],
        "entries": [
            {
                "ip": _address(first + index), "ip6": f"fd00:10:{first + index >> 16:x}:{first + index & 0xFFFF:x}::1",
                "id": 1000 + (first + index) // 30, "pod": f"service-{(first + index) // 30}-7d9c5b8f6-{index:05x}",
            }
            for index in range(length)
        ],
    }  # fmt: skip


def namespace(number: int) -> dict[str, Any]:
    """A Namespace with two labels."""
    labels = {"team": f"team-{number % 60}", "stage": ("production", "staging")[number % 2]}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": f"namespace-{number}", "labels": labels}}


def policy(number: int) -> dict[str, Any]:
    """A NetworkPolicy: a service accepts a team's pods of any namespace, and those of another service."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"policy-{number}", "namespace": f"namespace-{number % NAMESPACES}"},
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": f"service-{number}"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {"team": f"team-{number % 60}"}}},
                        {"podSelector": {"matchLabels": {"app.kubernetes.io/name": f"service-{number + 500}"}}},
                    ],
                    "ports": [{"port": 8080, "protocol": "TCP"}],
                }
            ],
        },
    }


def protobuf(value: Mapping[str, Any]) -> bytes:
    """The wire format of a message with these fields, in their order."""
    out = bytearray()
    for number, (name, item) in enumerate(value.items(), start=1):
        if name in ("labels", "annotations", "fieldsV1"):
            out += _map(number, item) if name != "fieldsV1" else _field(number, _json(item))
            continue
        for each in item if isinstance(item, list) else [item]:
            out += _field(number, each)
    return bytes(out)


def _map(number: int, items: Mapping[str, str]) -> bytes:
    return b"".join(_field(number, {"key": key, "value": value}) for key, value in items.items())


def _json(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()  # managed fields are JSON within the protobuf, too (FieldsV1.Raw)


def _field(number: int, value: object) -> bytes:
    if value is None or value is False or value == 0:
        return b""
    if isinstance(value, (bool, int)):
        return _varint(number << 3) + _varint(int(value))
    body = protobuf(value) if isinstance(value, Mapping) else str(value).encode()
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
