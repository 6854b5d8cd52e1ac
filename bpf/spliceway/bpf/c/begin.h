// SPDX-License-Identifier: GPL-2.0-only
// What the TC programs do for splices: they make the state entry when a SYN passes, and let pods' sockets leave.
#pragma once

// A payload by TCP from the proxy to a pod, on a proxied leg.
static __always_inline int waits_to_leave(const struct ct_key *k, u64 netns_cookie)
{
	struct splice_key key = {};

	splice_key_of(k, netns_cookie, &key);
	struct splice_state *st = splices.lookup(&key);
	return st && must_wait(st, &key);
}

// A payload by TCP from a pod to the proxy.
static __always_inline void may_leave_now(const struct ct_key *k, u64 netns_cookie)
{
	struct splice_key key = {};

	splice_key_of(k, netns_cookie, &key);
	struct splice_state *st = splices.lookup(&key);
	if (st)
		may_leave(st, &key);
}

// Does somebody not want this connection spliced? `port`: the server's.
static __always_inline u8 unwanted(const struct endpoint *ep, u32 ifindex, u16 port)
{
	struct unspliced_key own = { .ifindex = ifindex, .port = port }, all = { .port = port };

	if (ep->unspliced)
		return WHY_OPTED_OUT;
	return unspliced.lookup(&own) || unspliced.lookup(&all) ? WHY_EXCLUDED_PORT : 0;
}

// The state entry of a connection that may be spliced is made here, when its SYN passes, and nowhere else. A retransmitted SYN (same
// initial sequence number) finds its entry and leaves it alone.
static __always_inline void begin_splice(const struct endpoint *ep, u32 ifindex, const struct work *w, u8 leg, u32 rule_set)
{
	struct splice_key key = {};
	struct splice_state s = {};
	u32 number = RULE_SET_NUMBER(rule_set);

	splice_key_of(&w->key, ep->netns_cookie, &key);
	struct splice_state *old = splices.lookup(&key);
	if (old && old->isn == w->p.seq && old->rule_set == rule_set && old->leg == leg)
		return;
	if (old) {	// it ends here, and what waited in it with it
		note_unread(old, END_POD, key.netns_cookie, 0);
		note_unread(old, END_PROXY, key.netns_cookie, 0);
	}
	s.nonce = ((u64)bpf_get_prandom_u32() << 32) | bpf_get_prandom_u32();
	s.generation = w->generation;
	s.born = w->now;
	s.rule_set = rule_set;
	s.isn = w->p.seq;
	s.leg = leg;
	s.reason = w->d.reason;
	struct listener *l = leg == LEG_DOWNSTREAM ? listeners.lookup(&number) : NULL;
	if (l)
		s.port = l->port;
	u8 why = w->p.payload ? WHY_DATA_IN_SYN : unwanted(ep, ifindex, leg == LEG_DOWNSTREAM ? key.peer_port : key.pod_port);
	if (why) {
		s.word = TCP_ONLY;
		count_tcp_only(&s, why);
	}
	splices.update(&key, &s);
}
