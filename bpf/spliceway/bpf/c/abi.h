// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// The one place for what kernel programs and user space share: structs, verdicts, reasons, sizes; what is about splices is in spliceabi.h.
// Its Python mirror is `spliceway/bpf/abi.py`, and a test compares every offset and value. A change of layout raises ABI_VERSION, which is
// part of the pin path: two versions never share a map.
#pragma once

#ifndef ABI_VERSION	// tests of an upgrade compile another
#define ABI_VERSION 5
#endif

enum hook { HOOK_FROM_POD, HOOK_TO_POD, HOOK_FROM_NETWORK, HOOK_SK_MSG, HOOK_SK_LOOKUP, HOOK_TO_NETWORK, HOOKS };
enum direction { INGRESS, EGRESS };
enum verdict { VERDICT_NONE, ALLOW, REDIRECT, DENY, VERDICTS };
enum leg { LEG_DIRECT, LEG_DOWNSTREAM, LEG_UPSTREAM, LEG_SIDECAR };

enum reason {
	UNKNOWN = 0,
	POLICY_ALLOWED = 1,
	NO_POLICY = 2,
	REDIRECTED = 3,
	REPLY = 4,
	HOST_ALLOWED = 5,
	RELATED = 6,
	CONTROL = 7,
	FROM_PROXY = 8,
	SERVICE = 9,
	DEFAULT_DENY = 32,
	POLICY_DENIED = 33,
	SPOOFED_SOURCE = 34,
	MALFORMED = 35,
	UNSUPPORTED_PROTOCOL = 36,
	FRAGMENT = 37,
	NO_ENDPOINT = 38,
	NO_IDENTITY = 39,
	NOT_STEERED = 40,
	NO_LISTENER = 41,
	ASSIGN_FAILED = 42,
	RULE_SET_CHANGED = 43,
	TUPLE_CONFLICT = 44,
	UNTRACKED = 45,
	NOT_FOR_LISTENERS = 46,
	NOT_READY = 47,
	FOREIGN_SOURCE = 48,
	SOURCE_ROUTE = 49,
	TUNNEL = 50,
	WRAPPED = 51,
	KERNEL_REASONS = 64,
};

// An IPv4 address is kept as ::ffff:a.b.c.d, so that a dual-stack socket and a plain one meet under one key.
struct addr {
	u32 w[4];
};

// Generation of all policy state, one element. Its lowest bit is the live slot of every two-slot value below: user space fills
// the other slot and then writes this word, so that rows which belong together become visible together.
struct generation {
	u64 number;
};

#define CONFIG_SPLICE_CLIENTS 1u	// legs between clients and the proxy
#define CONFIG_SPLICE_SERVERS 2u	// legs between the proxy and servers: sockets that a pod has accepted
#define CONFIG_SPLICE_OFF 4u		// somebody wants it so; otherwise what is not spliced is not safe on this kernel
#define CONFIG_AUDIT 8u			// what would be dropped is told and passes (work.h)
#define CONFIG_DISABLED 16u		// the kill switch is on (disabled.h)
#define CONFIG_LENIENT 32u		// for user space: the proxy was told to let every request pass
#define CONFIG_NOTES_STAY 64u		// no filter of others makes the kernel forget whose a packet is (sender.h)

struct config {
	u64 node_cookie;	// network namespace cookie of the node
	u32 mark;
	u32 mark_mask;
	u32 flags;		// CONFIG_*
	u16 first_port;		// listeners' ports, host order
	u16 last_port;
	u32 unread_connection;	// bytes that may be spliced and unread: in one direction of a connection,
	u64 unread_endpoint;	// for all connections of an endpoint,
	u64 unread_node;	// and of the node
	u32 steering;		// ifindex of the sending end of the pair that leads to the proxy (handover.h)
	u32 delivery;		// and of the receiving one
	u32 proxy_mark;		// of what the proxy's sockets send, under mark_mask
	u32 pad;
};

#define IDENTITY_HOST 1u
// The host with further labels (addresses that a policy tells apart): the host all the same.
#define FIRST_HOST_VARIANT 64u
#define LAST_HOST_VARIANT 127u
#define IDENTITY_UNMANAGED 3u
#define IDENTITY_REMOTE_NODE 6u
#define IDENTITY_WORLD_IPV4 9u
#define IDENTITY_WORLD_IPV6 10u
// Prefixes outside the cluster have the numbers from here on.
#define FIRST_CIDR_IDENTITY 0x1000000u

struct ipcache_key {
	u32 prefixlen;
	struct addr addr;
};

// Loopback's ifindex: an address that a process of the node answers by, though its identity is not the node's (the node-local DNS cache, which
// has that of the cluster's DNS).
#define SERVED_BY_NODE 1u
// No interface's index: an address outside that Services are dialled by. Where that leads is judged, and not the address.
#define SERVICE_ADDRESS 0xffffffffu

struct ipcache_value {
	u32 identity[2];	// by slot; 0: none
	u32 endpoint[2];	// ifindex of the local endpoint that has this address, SERVED_BY_NODE, SERVICE_ADDRESS, or 0
};

// In rows, pairs, conntrack and splices a rule set that enforces nothing (policies in audit only) has this bit. Its connections pass
// without a proxy where it can't be asked: audit changes no traffic.
#define RULE_SET_AUDIT 0x40000000u
#define RULE_SET_NUMBER(set) ((set) & ~RULE_SET_AUDIT)

#define ENFORCE_INGRESS 1u
#define ENFORCE_EGRESS 2u
#define ENFORCE_READY 4u

// Key: ifindex of the host side of the endpoint's veth.
struct endpoint {
	u64 netns_cookie;
	struct addr v4;		// all zero: none
	struct addr v6;
	u32 identity[2];
	u32 policy[2];
	u8 enforce[2];		// ENFORCE_*
	u8 unspliced;		// 1: its sockets are never spliced
	u8 pad;
	u32 bridge;		// ifindex of the bridge that the veth is a port of, or 0
};

// Ports of servers whose connections are not spliced: of one endpoint, or of all (ifindex 0).
struct unspliced_key {
	u32 ifindex;
	u16 port;		// network order
	u16 pad;
};

struct class_key {
	u32 policy;
	u32 identity;
	u32 direction;
};

struct class_value {
	u32 class_id[2];	// 0: peers that the policy treats like any other
};

// Bits 0-79 are exact (policy, class, direction, protocol), then up to 16 bits of port. A row for every protocol ends at bit 72.
#define POLICY_PREFIX_ANY 72u
#define POLICY_PREFIX_PROTOCOL 80u

struct policy_key {
	u32 prefixlen;
	u32 policy;
	u32 class_id;
	u8 direction;
	u8 protocol;
	u16 port;		// network order
};

struct policy_value {
	u32 rule[2];
	u32 rule_set[2];
	u8 verdict[2];
	u8 reason[2];
};

// Rule sets of the client's egress and the server's ingress → the rule set that asks both. A rule set never changes its meaning, so there is
// nothing to switch: entries come before the rows that need them and go after.
struct pair_key {
	u32 egress;
	u32 ingress;
};

struct pair_value {
	u32 rule_set;
};

struct listener {
	u16 port;		// host order, on 127.0.0.1 and ::1
};

#define SIDE_POD 0
#define SIDE_NETWORK 1
#define SIDE_TRANSLATED 2

// Conntrack is kept in the perspective of one end: `local` is the endpoint's own address (SIDE_POD), or a host's outside whose
// connection is steered (SIDE_NETWORK). A pod has one socket for a tuple, so client-to-proxy and proxy-to-server never meet.
// SIDE_TRANSLATED: what leaves the node with other ends than its pod gave it, by these other ends; `local` may be the node's own address then.
struct ct_key {
	struct addr local;
	struct addr remote;
	u16 local_port;		// network order; ICMP echo: identifier
	u16 remote_port;
	u8 protocol;
	u8 side;
	u16 pad;
};

#define CT_CLIENT 1u		// the local end opened it
#define CT_FIN_OUT 2u		// seen from the local end
#define CT_FIN_IN 4u
#define CT_RESET 8u
#define CT_REPLIED 16u
#define CT_UNSEEN 64u		// nobody has seen it begin: which end opened it is not known
#define CT_TRANSLATED 32u	// LEG_UPSTREAM: the proxy dialled other ends; answers must be translated back before they are steered
				// LEG_DOWNSTREAM: the client did; the proxy's answers must be translated back

struct ct_value {
	u64 seen;		// CLOCK_MONOTONIC, ns
	u64 packets;
	u64 bytes;
	u64 judged;		// generation << 2 | verdict, one word: two CPUs that judge at once can't mix theirs
	u32 rule;
	u32 rule_set;
	u32 peer_identity;
	u32 peer_ifindex;	// veth of the peer, when it is an endpoint of this node
	u8 leg;
	u8 flags;		// CT_*
	u8 reason;
	u8 pad[5];
};

// What marks a socket of the proxy: the port of the listener that it is, or came from; this for one that the proxy opened.
#define PROXY_CONNECTED 0x10000u

struct fragment_key {
	struct addr src;
	struct addr dst;
	u32 id;
	u32 protocol;
};

struct fragment_value {
	u16 sport;
	u16 dport;
	u32 pad;
};

struct counter {
	u64 packets;
	u64 bytes;
};

#define REASON_SLOTS 128	// counters: (hook * VERDICTS + verdict) * REASON_SLOTS + reason

struct event {
	u64 time;
	struct addr src;
	struct addr dst;
	u32 src_identity;
	u32 dst_identity;
	u32 rule;
	u32 rule_set;
	u32 length;
	u16 sport;		// host order
	u16 dport;
	u8 protocol;
	u8 hook;
	u8 verdict;
	u8 reason;
	u8 leg;
	u8 reply;
	u8 revoked;		// a connection that had been allowed lost its verdict
	u8 ended;		// and the agent has ended it
};

#include "spliceabi.h"	// which is about addresses, too
