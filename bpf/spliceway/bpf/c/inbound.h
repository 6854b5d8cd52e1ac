// SPDX-License-Identifier: GPL-2.0-only
// Steering on the way in, by the ends that a packet has now: at a device of the node's, and at a pod for what netfilter gave other ends behind the first hook
// (kube-proxy's Services; answers that were masqueraded). The entry is of SIDE_NETWORK: `local` is where the packet comes from.
#pragma once

// TCP from elsewhere to a local endpoint. PASS: it needs no proxy, as far as this can tell.
static __always_inline int inbound(struct __sk_buff *skb, u32 hook, struct work *w, const struct config *cfg)
{
	u32 slot = w->generation & 1;

	make_key(w, 1, SIDE_NETWORK);
	struct ct_value *e = conntrack.lookup(&w->key);
	u32 syn = is_new_syn(&w->p), proxied = 0, state = 0;
	u32 fresh = !e || ct_expired(e, PROTO_TCP, w->now) || (syn && ct_closing(e));
	if (fresh || syn || e->leg == LEG_UPSTREAM) {
		proxied = proxy_has(skb, &w->p.outer, w->p.family, &state);
		u32 upstream = e && e->leg == LEG_UPSTREAM;	// asked before the entry may go
		enum answer kind = answer_kind(w, e, proxied, state);
		if (kind != NO_ANSWER)
			return hand_answer_over(skb, hook, w, cfg, e, kind);
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
			return drop(hook, w, RULE_SET_CHANGED);
		ct_create(&w->key, &w->p, 1, w->f.dst_identity, w->generation, w->now, &w->f, &w->d);
		report(hook, &w->f, &w->d);
	} else {
		if (w->d.verdict == DENY)
			return drop(hook, w, 0);
		ct_touch(e, &w->p, 1, w->f.length, w->now);
		e->flags |= CT_REPLIED;		// the proxy's answers leave by a device without a hook
	}
	// Whether netfilter has to translate the answers back, and so to know them (untracked.h).
	if (syn && (e = conntrack.lookup(&w->key)))
		e->flags = hook == HOOK_FROM_NETWORK ? e->flags & ~CT_TRANSLATED : e->flags | CT_TRANSLATED;
	int reason = steer(skb, &w->p, w->d.rule_set, LEG_DOWNSTREAM, 0);
	if (reason)
		return drop(hook, w, reason);
	count(hook, REDIRECT, fresh ? w->d.reason : known_reason(hook, w, 0), w->f.length);
	return hand_over(skb, hook, w, cfg, w->d.rule_set, LEG_DOWNSTREAM);
}
