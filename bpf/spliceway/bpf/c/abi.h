// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// The one place for what kernel programs and user space share: structs, verdicts, reasons, sizes. Its Python mirror is
// `spliceway/bpf/abi.py`, and a test compares every offset and value. A change of layout raises ABI_VERSION, which is part of the
// pin path: two versions never share a map.
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

// ---- splice ----

enum splice_word { UNDECIDED, ACTIVE_IN, SPLICED, TCP_ONLY, REVOKED };

enum splice_why {
	WHY_NONE,
	WHY_OFF,		// splicing is switched off
	WHY_DATA_IN_SYN,
	WHY_SENT_FIRST,		// bytes left before both ends were in the map
	WHY_NO_ACTIVE,		// the opening end is not in the map
	WHY_MAP_ERROR,		// the kernel refused the insertion
	WHY_PEER_GONE,		// the redirect found no peer
	WHY_KERNEL,		// not proved safe on this kernel
	WHY_MAP_FULL,
	WHY_OTHER_OWNER,	// another sockmap program has the socket
	WHY_OPTED_OUT,		// the endpoint does not want it
	WHY_EXCLUDED_PORT,
	WHY_SMALL_WRITES,	// it was spliced and has left: a stream of small messages,
	WHY_UNREAD_LIMIT,	// more unread than a connection may have,
	WHY_UNREAD_BUDGET,	// than its endpoint or the node may have,
	WHY_HALF_CLOSED,	// its pod has shut down its sending side,
	WHY_READER_STUCK,	// or its pod holds the socket's lock and does not get on
	WHY_NOT_SIDECAR,	// the accepting socket is not the sidecar's, or is where the application's was meant
	WHY_OTHER_SOCKET,	// or not the one that the opening socket talks with
	WHYS,
};

#define END_POD 0
#define END_PROXY 1
// The state of a connection that made room for another one on the same ports, as long as something of it waits unread and costs.
#define REMAINS 0x40000000u
#define NONCE_PART 0x3fffffffu

// `pod` is always the endpoint's own end, also for the proxy's sockets; the cookie comes from the endpoint table.
struct splice_key {
	u64 netns_cookie;
	struct addr pod;
	struct addr peer;
	u16 pod_port;		// network order
	u16 peer_port;
	u32 end;		// END_*; in the map of states END_POD, or REMAINS and a part of the nonce
};

// A kernel socket: where it is, and how to know that it is still the one.
struct splice_end {
	u64 address;
	u64 cookie;
};

// One direction, by the sending end. Written by who sends, who holds the socket's lock then.
struct splice_way {
	u64 bytes;		// redirected
	u64 messages;
	u64 unread;		// bytes that the reader had not read when that was looked at last
	u64 charged;		// the memory that may cost; what is counted in the sums
	u64 mark_bytes;		// when so many bytes were read, so were
	u64 mark_messages;	// so many messages
	u64 read_messages;	// messages that are known to have been read
	u32 behind;		// small messages that found the reader behind, more than those that did not
	u32 pad;
};

// Besides its bytes, an unread message costs its descriptor and the page fragment that its last byte lies in.
#define MESSAGE_COST 33792u

// An end is over when its socket is closed and nobody can read from it any more. The entry goes with the second one.
#define CLOSED(end) (1ull << (end))
#define RELEASED(end) (4ull << (end))
#define OVER(end) (16ull << (end))
#define PROXY_LEFT 64ull	// its socket is in the sockhash no more

#define POD_IN 1
#define POD_LEAVES 2
struct splice_state {
	u64 word;		// enum splice_word, changed by compare-and-swap only
	u64 nonce;
	u64 generation;
	u64 born;		// CLOCK_MONOTONIC, ns
	u64 ends;		// CLOSED, RELEASED, OVER, PROXY_LEFT
	u64 pod_in;		// POD_*: is the pod's socket in the sockhash?
	struct splice_end sock[2];
	struct splice_way way[2];
	u32 rule_set;
	u32 isn;		// initial sequence number of the SYN that made it
	u16 port;		// the listener's, host order; 0: the proxy opened it
	u8 leg;
	u8 why;
	u8 reason;		// of the verdict
	u8 has_hole;
	u8 asks;		// its proxy asks for room (splice_room)
	u8 stuck;		// so many times in a row its pod was stuck in recv()
	u32 hole;		// host order: behind the last payload by TCP that was kept from the pod
	u32 held;		// of the send buffer that its proxy got for what is held back
	u32 answer;		// LEG_SIDECAR, host order: what the opening end awaits first
	u32 pad;
#ifdef TEST_STATE_PADDING
	u64 padding[TEST_STATE_PADDING];
#endif
};

// Memory that spliced and unread messages of an endpoint may cost (key: network namespace cookie), and of the node (key 0). What is below
// the floor for a direction of a connection, two small messages, is not counted: so those cost nothing.
#define UNREAD_FLOOR 81920u

// SO_PRIORITY of the proxy's sockets whose packets netfilter must not track: as a class of traffic control 2480:0 (netfilter.py).
#define UNTRACKED_PRIORITY 0x24800000u

// getsockopt() by which the proxy asks how many bytes a spliced socket may send now (u32). ENOPROTOOPT: as many as it likes.
#define SOCKOPT_LEVEL 0x5317
#define SOCKOPT_ROOM 1

// What the kernel takes of a proxy that can't send and does not ask, before a budget of its own is used up: about what Envoy has for a connection
// (bufferLimit). Its bookkeeping takes as much again, so it doubles it.
#define HELD_BACK 1048576u
// With this bit, a key of `unread` is for the sum of such buffers.
#define HELD_SUMS (1ull << 63)

// With this bit, the cookie of a network namespace is for connections inside of it, between an application and its sidecar (sidecar.h).
#define SIDECAR_LEG (1ull << 62)
// Where Istio's sidecars accept what applications dial, and what comes for them.
#define SIDECAR_OUTBOUND 15001
#define SIDECAR_INBOUND 15006

// A pod with a sidecar, by the cookie of its network namespace.
struct sidecar_pod {
	u32 uid;		// the sidecar's
	u32 ifindex;		// of the host side of its veth
	u8 unspliced;		// 1: its sockets are never spliced
	u8 pad[7];
};

struct unread {
	u64 bytes;		// signed in effect: sums of differences
};

#define FORSAKEN 2	// answer of measure_splice

// What the agent asks after a change of policy (question.h): may a connection that was accepted on this listener's port (host order; 0: not
// known) for this rule set go on? Then, of each that it has ended: what is to be noted.
#define NOTE_ENDED 1	// it counts as revoked
#define NOTE_WHY 2	// its denial is counted and recorded
#define NOTE_STOP 4	// what has a state is judged by that and revoked; without a cookie it is the pod's of now

// The answers; to STOP: no state, may go on, -, and for one that a message or another question has stopped it is counted and recorded by then.
enum judgement { DENIED, MAY_GO_ON, NO_QUESTION, DENIED_NOW, DENIED_BEFORE };

struct question {
	struct splice_key key;
	u32 rule_set;
	u16 port;
	u8 leg;
	u8 note;
};

// Kept in the socket itself: which connection it belongs to.
struct sock_tag {
	u64 nonce;
	struct splice_key key;
};

struct splice_counters {
	u64 redirected_bytes;
	u64 redirected_messages;
	u64 tcp_bytes;
	u64 tcp_messages;
	u64 spliced;
	u64 tcp_only;
	u64 revoked;
	u64 left;		// pods' sockets that left the sockhash in mid-life
	u64 leave_waits;	// packets for a pod that had to wait for that
	u64 lost_events;
	u64 sidecar_spliced;	// of `spliced`, and of `tcp_only`, those between applications and their sidecars
	u64 sidecar_tcp_only;
	u64 by_why[WHYS];	// connections that were never spliced (together `tcp_only`), and those that are so no longer
};
