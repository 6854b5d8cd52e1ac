// SPDX-License-Identifier: GPL-2.0-only
// Answers to connections that the proxy has opened in the name of a client pod, to a server outside or on the node. The proxy's packets to
// them meet no hook, so the first answer makes the entry: SIDE_NETWORK, `local` is the server. What is not the proxy's goes on to the pod.
#pragma once

enum answer { NO_ANSWER, ANSWER, FIRST_ANSWER, LATE_ANSWER };

// Is this packet an answer to the proxy? The socket counts: an entry may outlive its connection, and then a SYN begins another one, which
// is none of the proxy's. What else comes for it is late, and nobody's. `w->key` is of SIDE_NETWORK, `e` its entry.
static __always_inline enum answer answer_kind(struct work *w, const struct ct_value *e, u32 mark, u32 state)
{
	if (mark == PROXY_CONNECTED)
		return state == STATE_SYN_SENT || !e || e->leg != LEG_UPSTREAM || ct_expired(e, PROTO_TCP, w->now) ? FIRST_ANSWER
														   : ANSWER;
	if (!e || e->leg != LEG_UPSTREAM || ct_expired(e, PROTO_TCP, w->now))
		return NO_ANSWER;
	if (w->p.tcp_flags & TCP_SYN) {
		conntrack.delete(&w->key);
		return NO_ANSWER;
	}
	return state == STATE_TIME_WAIT ? ANSWER : LATE_ANSWER;
}

// Judges an answer, as one about the connection from the pod to the server. Returns 0 or, after a drop, 1.
static __always_inline int judge_answer(u32 hook, struct work *w, struct ct_value *e, enum answer kind)
{
	w->f.leg = LEG_UPSTREAM;
	w->f.reply = 1;
	if (kind == LATE_ANSWER) {
		drop(hook, w, NO_LISTENER);
		return 1;
	}
	if (kind == FIRST_ANSWER || !e) {
		decide_ends(&w->key, NULL, 0, w->key.local_port, w->generation & 1, &w->f, &w->d);
		keep_leg(LEG_UPSTREAM, w->d.rule_set, &w->d);
		if (w->d.verdict != DENY)
			ct_create(&w->key, &w->p, 0, w->f.dst_identity, w->generation, w->now, &w->f, &w->d);
	} else {
		ct_revalidate(&w->key, NULL, e, w->generation, &w->f, &w->d);
		if (w->d.verdict != DENY)
			ct_touch(e, &w->p, 1, w->f.length, w->now);
	}
	if (w->d.verdict != DENY)
		return 0;
	drop(hook, w, 0);
	return 1;
}

// To the proxy with it: from a server outside, by a device of the node's; from one on the node, or one outside whose answers netfilter has translated back
// (masquerading), on its way to the pod.
static __always_inline int hand_answer_over(struct __sk_buff *skb, u32 hook, struct work *w, const struct config *cfg, struct ct_value *e,
					    enum answer kind)
{
	if (judge_answer(hook, w, e, kind))
		return DROP;
	int reason = steer(skb, &w->p, w->d.rule_set, LEG_UPSTREAM, 0);
	if (reason)
		return drop(hook, w, reason);
	count(hook, REDIRECT, REPLY, w->f.length);
	return hand_over(skb, hook, w, cfg, w->d.rule_set, LEG_UPSTREAM);
}

// An error about a packet of the proxy's to a server outside that has not answered yet, or whose entry is gone.
static __always_inline int unanswered_error(struct __sk_buff *skb, struct work *w, const struct config *cfg)
{
	struct tuple t = { .src = w->p.inner.dst, .dst = w->p.inner.src, .sport = w->p.inner.dport, .dport = w->p.inner.sport };
	u32 state;

	if (w->p.inner_protocol != PROTO_TCP || !same_addr(&w->p.inner.src, &w->p.outer.dst) ||
	    proxy_has(skb, &t, w->p.family, &state) != PROXY_CONNECTED)
		return PASS;
	decide_ends(&w->key, NULL, 0, w->key.local_port, w->generation & 1, &w->f, &w->d);
	keep_leg(LEG_UPSTREAM, w->d.rule_set, &w->d);
	if (w->d.verdict == DENY)
		return drop(HOOK_FROM_NETWORK, w, 0);
	pass(HOOK_FROM_NETWORK, w, RELATED);
	return hand_over(skb, HOOK_FROM_NETWORK, w, cfg, w->d.rule_set, LEG_UPSTREAM);
}
