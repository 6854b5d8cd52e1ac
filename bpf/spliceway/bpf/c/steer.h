// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// Which socket of the proxy a packet is for: an established one, or the listener of the rule set. No NAT: the packet keeps its addresses,
// a policy route on the mark delivers it locally, and `bpf_sk_assign` names the socket (TPROXY without netfilter). handover.h has the way there.
#pragma once

#define STATE_SYN_SENT 2
#define STATE_TIME_WAIT 6
#define STATE_LISTEN 10
#define STATE_NEW_SYN_RECV 12

// The proxy's own: its cgroup's sockops program marked the socket, or the listener that it came from. Returns 0 when it is not, else the
// port of that listener, or PROXY_CONNECTED for a socket that the proxy opened.
static __always_inline u32 is_proxy_sock(struct bpf_sock *sk)
{
	struct bpf_sock *full = sk->state == STATE_NEW_SYN_RECV ? bpf_get_listener_sock(sk) : bpf_sk_fullsock(sk);
	u32 *mark = full ? proxy_socks.sk_storage_get(full, 0, 0) : NULL;

	return mark ? *mark : 0;
}

// 1 while a program of ours looks for a socket: the guard (sk_lookup) runs in between, and must know that no packet is looking.
BPF_TABLE("percpu_array", u32, u32, looking, 1);

static __always_inline void set_looking(u32 value)
{
	u32 zero = 0, *ours = looking.lookup(&zero);

	if (ours)
		*ours = value;
}

static __always_inline struct bpf_sock *find_sock(struct __sk_buff *skb, const struct tuple *t, u8 family)
{
	struct bpf_sock_tuple tuple = {};

	if (family == 4) {
		tuple.ipv4.saddr = t->src.w[3];
		tuple.ipv4.daddr = t->dst.w[3];
		tuple.ipv4.sport = t->sport;
		tuple.ipv4.dport = t->dport;
		return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(tuple.ipv6.saddr, &t->src, 16);
	__builtin_memcpy(tuple.ipv6.daddr, &t->dst, 16);
	tuple.ipv6.sport = t->sport;
	tuple.ipv6.dport = t->dport;
	return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

static __always_inline struct bpf_sock *lookup_sock(struct __sk_buff *skb, const struct tuple *t, u8 family)
{
	set_looking(1);
	struct bpf_sock *sk = find_sock(skb, t, family);
	set_looking(0);
	return sk;
}

// The rule set's listener on loopback. The lookup asks as «from nowhere» (address and port zero), which no packet can be: that is how
// the sk_lookup guard tells it from a packet that dialled the listener itself.
static __always_inline struct bpf_sock *lookup_listener(struct __sk_buff *skb, u32 rule_set, u8 family)
{
	struct tuple t = {};
	u32 number = RULE_SET_NUMBER(rule_set);
	struct listener *l = listeners.lookup(&number);

	if (!l)
		return NULL;
	t.dport = htons(l->port);
	if (family == 4)
		mapped(&t.dst, 0x0100007f);
	else
		t.dst.w[3] = 0x01000000;
	return lookup_sock(skb, &t, family);
}

// Is there a live connection of the proxy with a packet's tuple? As `is_proxy_sock`. `state`: of whatever socket was found, or 0.
static __always_inline u32 proxy_has(struct __sk_buff *skb, const struct tuple *t, u8 family, u32 *state)
{
	struct bpf_sock *sk = lookup_sock(skb, t, family);
	u32 ours = 0;

	*state = 0;
	if (!sk)
		return 0;
	*state = sk->state;
	if (sk->state != STATE_LISTEN && sk->state != STATE_TIME_WAIT)
		ours = is_proxy_sock(sk);
	bpf_sk_release(sk);
	return ours;
}

// Which leg does a socket of the proxy with this mark belong to?
static __always_inline u8 proxy_leg(u32 mark)
{
	return mark == PROXY_CONNECTED ? LEG_UPSTREAM : LEG_DOWNSTREAM;
}

// Has the rule set another listener by now than the one that accepted a connection? None at all is for want of a proxy.
static __always_inline int has_moved(u32 mark, u32 rule_set)
{
	u32 number = RULE_SET_NUMBER(rule_set);
	struct listener *l = mark == PROXY_CONNECTED ? NULL : listeners.lookup(&number);

	return l && l->port != mark;
}

// May a connection that the proxy already has go on under this verdict? Only if it redirects, and one that a listener accepted only if the
// rule set still has that listener: what began under another rule set must not go on under this one's name.
static __always_inline int same_listener(u32 mark, const struct decision *d)
{
	u32 rule_set = RULE_SET_NUMBER(d->rule_set);

	if (d->verdict != REDIRECT)
		return 0;
	if (mark == PROXY_CONNECTED)
		return 1;
	struct listener *l = listeners.lookup(&rule_set);
	return l && l->port == mark;
}

// Would a connection that only policies in audit steer meet no proxy? So for one that began without.
static __always_inline int nobody_to_ask(struct __sk_buff *skb, const struct packet *p, const struct decision *d, u32 syn)
{
	struct bpf_sock *sk;
	int there;

	if (!only_audited(d))
		return 0;
	if (!syn)
		return 1;
	sk = lookup_listener(skb, d->rule_set, p->family);
	if (!sk)
		return 1;
	there = sk->state == STATE_LISTEN && is_proxy_sock(sk);
	bpf_sk_release(sk);
	return !there;
}

// Returns 0 when the proxy has a socket for the packet, else the reason to drop it. `assign`: the packet gets that socket.
static __always_inline int steer(struct __sk_buff *skb, const struct packet *p, u32 rule_set, u8 leg, u32 assign)
{
	long failed = 0;
	struct bpf_sock *sk;

	if (p->first_fragment || p->later_fragment)
		return FRAGMENT;
	sk = lookup_sock(skb, &p->outer, p->family);
	if (sk) {
		// A wildcard listener of the node on this port is not the proxy. A socket in TIME_WAIT has lost its mark; only the
		// proxy could have made one between these two addresses.
		u32 time_wait = sk->state == STATE_TIME_WAIT;
		u32 mark = time_wait || sk->state == STATE_LISTEN ? 0 : is_proxy_sock(sk);
		int right_leg = mark && proxy_leg(mark) == leg, moved = right_leg && has_moved(mark, rule_set);
		if (time_wait || (right_leg && !moved))
			goto found;
		bpf_sk_release(sk);
		if (mark)
			return moved ? RULE_SET_CHANGED : TUPLE_CONFLICT;
	}
	if (leg != LEG_DOWNSTREAM)
		return NO_LISTENER;
	// For a packet in the middle of a connection that the proxy has lost, the listener answers with RST.
	sk = lookup_listener(skb, rule_set, p->family);
	if (!sk)
		return NO_LISTENER;
	if (sk->state != STATE_LISTEN || !is_proxy_sock(sk)) {
		bpf_sk_release(sk);
		return NO_LISTENER;
	}
found:
	if (assign)
		failed = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	return failed ? ASSIGN_FAILED : 0;
}

static __always_inline void splice_key_of(const struct ct_key *k, u64 netns_cookie, struct splice_key *key)
{
	key->netns_cookie = netns_cookie;
	key->pod = k->local;
	key->peer = k->remote;
	key->pod_port = k->local_port;
	key->peer_port = k->remote_port;
	key->end = END_POD;
}

static __always_inline int is_spliced(const struct ct_key *k, u64 netns_cookie)
{
	struct splice_key key = {};

	splice_key_of(k, netns_cookie, &key);
	struct splice_state *st = splices.lookup(&key);
	return st && st->word == SPLICED;
}
