// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// What the socket load balancer and user space share; see abi.h. Its Python mirror is `spliceway/bpf/lbabi.py`.
#pragma once

// A Service's address as pods dial it.
struct lb_key {
	struct addr addr;
	u16 port;		// network order
	u8 protocol;
	u8 pad;
};

// One word, which is read at once: number of the set of backends, and above it how long ClientIP affinity lasts (seconds; 0: there is none).
// Every frontend has a set of its own, and a number means another set only after a restart of the agent.
struct lb_frontend {
	u64 word;
};

// What is chosen from: backends by place, so many in each row. The row of block 0 has the count of all of them.
#define LB_ROW 15u

struct lb_row_key {
	u32 set;
	u32 block;
};

struct lb_row {
	u32 count;		// in block 0; places behind it mean nothing
	u32 number[LB_ROW];
};

// Who is a backend. A number is one backend for as long as that stays in its set, wherever its place is.
struct lb_backend_key {
	u32 set;
	u32 number;
};

struct lb_backend {
	struct addr addr;
	u16 port;		// network order
	u16 pad;
};

struct lb_affinity_key {
	u64 netns_cookie;	// the pod
	u32 set;
	u32 pad;
};

struct lb_affinity {
	u64 seen;		// CLOCK_MONOTONIC, ns: the last new connection
	u32 number;
	u32 pad;
};

// Kept in the socket itself: what a connected socket has dialled, and got.
struct lb_peer {
	struct lb_key frontend;
	struct lb_backend backend;
	u32 set;
	u32 number;
};

// Frontends that a UDP socket talks to without being connected.
#define LB_TALKS 16u

struct lb_talks {
	u32 next;		// the place that the next frontend takes
	u32 last;		// where was sent last
	struct lb_peer talk[LB_TALKS];
};
