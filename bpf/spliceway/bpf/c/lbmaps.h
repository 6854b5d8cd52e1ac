// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// Maps of the socket load balancer, pinned beside the others; user space fills the first three (`services.py`).
#pragma once

BPF_TABLE_PINNED("hash", struct lb_key, struct lb_frontend, lb_frontends, MAX_FRONTENDS, PIN("lb_frontends"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct lb_row_key, struct lb_row, lb_rows, MAX_FRONTENDS + MAX_BACKENDS / LB_ROW, PIN("lb_rows"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct lb_backend_key, struct lb_backend, lb_backends, MAX_BACKENDS, PIN("lb_backends"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct lb_affinity_key, struct lb_affinity, lb_affinities, MAX_AFFINITIES, PIN("lb_affinities"), 0);

// In the sockets themselves, not in a map by cookie: it goes with the socket, and no pod can push out what another one's sockets need by making
// very many. A connected socket needs one entry; the larger one is for UDP sockets that are not connected.
BPF_TABLE_PINNED("sk_storage", int, struct lb_peer, lb_peers, 0, PIN("lb_peers"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("sk_storage", int, struct lb_talks, lb_socket_talks, 0, PIN("lb_socket_talks"), BPF_F_NO_PREALLOC);

// Network namespaces whose sockets are left alone: a mesh in the pod has to see what the application dials.
BPF_TABLE_PINNED("hash", u64, u8, lb_untouched, MAX_ENDPOINTS, PIN("lb_untouched"), BPF_F_NO_PREALLOC);

// Connected UDP sockets of pods, by cookie, with the backend that they have: for user space, which has to end those whose backend goes, and can't
// read the storage of a UDP socket (sock_diag gives it for TCP only). They go when they are closed. Where there are more, the rest is not ended.
BPF_TABLE_PINNED("hash", u64, struct lb_backend_key, lb_connected, 65536, PIN("lb_connected"), BPF_F_NO_PREALLOC);
