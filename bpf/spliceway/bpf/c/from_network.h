// SPDX-License-Identifier: GPL-2.0-only
// TC ingress on the uplinks: connections from outside that need the proxy, and answers to those that the proxy has opened to there.
#pragma once

// From outside to a local endpoint. What needs no proxy is left to `to_pod`.
int from_network(struct __sk_buff *skb)
{
	struct work *w = take_work(HOOK_FROM_NETWORK);
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);
	struct party src, dst;

	if (!w)
		return DROP;
	begin(skb, w);
	if (!cfg)
		return PASS;
	int reason = read_packet(skb, w);
	if (reason == UNSUPPORTED_PROTOCOL || w->p.kind == KIND_NEIGHBOUR)
		return PASS;	// the link's business; it reaches no endpoint by routing
	u32 slot = w->generation & 1;
	find_party(&w->p.outer.dst, slot, &dst);
	find_party(&w->p.outer.src, slot, &src);
	w->f.src_identity = src.identity;
	w->f.dst_identity = dst.identity;
	if (src.netns_cookie || is_host(src.identity))
		return drop(HOOK_FROM_NETWORK, w, SPOOFED_SOURCE);
	if (!dst.netns_cookie)
		return PASS;
	if (reason)
		return drop(HOOK_FROM_NETWORK, w, reason);
	if (w->p.kind == KIND_ICMP_ERROR) {
		make_quoted_key(w, 1, SIDE_NETWORK);
		if (!conntrack.lookup(&w->key))
			return unanswered_error(skb, w, cfg);
		if (!same_addr(&w->p.inner.src, &w->p.outer.dst))
			return drop(HOOK_FROM_NETWORK, w, UNTRACKED);
		return related(skb, HOOK_FROM_NETWORK, w, cfg, NULL, 1, SIDE_NETWORK);
	}
	if (w->p.protocol != PROTO_TCP)
		return PASS;
	if (fragment_ports(w))
		return drop(HOOK_FROM_NETWORK, w, FRAGMENT);
	make_key(w, 1, SIDE_NETWORK);
	struct ct_value *e = conntrack.lookup(&w->key);
	u32 syn = is_new_syn(&w->p), proxied = 0, state = 0;
	u32 fresh = !e || ct_expired(e, PROTO_TCP, w->now) || (syn && ct_closing(e));
	if (fresh || syn || e->leg == LEG_UPSTREAM) {
		proxied = proxy_has(skb, &w->p.outer, w->p.family, &state);
		u32 upstream = e && e->leg == LEG_UPSTREAM;	// asked before the entry may go
		enum answer kind = answer_kind(w, e, proxied, state);
		if (kind != NO_ANSWER)
			return answer_from_outside(skb, w, cfg, e, kind);
		if (upstream)
			fresh = 1;
	}
	if (!fresh) {
		w->f.leg = e->leg;
		ct_revalidate(&w->key, NULL, e, w->generation, &w->f, &w->d);
		// The proxy's FIN and RST leave by a device without a hook: a new SYN shows that the old connection has ended.
		fresh = w->d.verdict == DENY && syn && !proxied;
	}
	if (fresh) {
		if (!syn && !proxied)
			return PASS;
		decide_ends(&w->key, NULL, 1, w->key.remote_port, slot, &w->f, &w->d);
		if (!proxied && nobody_to_ask(skb, &w->p, &w->d, syn))
			pass_by(&w->d);
		if (w->d.verdict != REDIRECT) {
			conntrack.delete(&w->key);
			return PASS;
		}
		w->f.leg = LEG_DOWNSTREAM;
		if (!syn && !same_listener(proxied, &w->d))
			return drop(HOOK_FROM_NETWORK, w, RULE_SET_CHANGED);
		ct_create(&w->key, &w->p, 1, w->f.dst_identity, w->generation, w->now, &w->f, &w->d);
		report(HOOK_FROM_NETWORK, &w->f, &w->d);
	} else {
		if (w->d.verdict == DENY)
			return drop(HOOK_FROM_NETWORK, w, 0);
		ct_touch(e, &w->p, 1, w->f.length, w->now);
		e->flags |= CT_REPLIED;		// the proxy's answers leave by a device without a hook
	}
	reason = steer(skb, &w->p, cfg, w->d.rule_set, LEG_DOWNSTREAM);
	if (reason)
		return drop(HOOK_FROM_NETWORK, w, reason);
	count(HOOK_FROM_NETWORK, REDIRECT, fresh ? w->d.reason : known_reason(HOOK_FROM_NETWORK, w, 0), w->f.length);
	return PASS;
}
