// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// The part of the ABI (abi.h, which includes it) that is about splices: states, questions, what waits unread, counters. Its Python mirror is
// `spliceway/bpf/spliceabi.py`.
#pragma once

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
