// SPDX-License-Identifier: GPL-2.0-only
// TC ingress on the host side of an endpoint's veth: source check, the policy of both ends, steering.
#pragma once

// A connection that this hook has not seen, or not since its entry went.
static __always_inline int from_pod_new(struct __sk_buff *skb, struct work *w, const struct config *cfg, const struct endpoint *ep)
{
	u32 slot = w->generation & 1, mark = 0, state;

	if (w->p.echo_reply)
		return drop(HOOK_FROM_POD, w, UNTRACKED);
	// In the middle of a connection of the proxy whose entry was evicted or has expired.
	if (w->p.protocol == PROTO_TCP && !is_new_syn(&w->p))
		mark = proxy_has(skb, &w->p.outer, w->p.family, &state);
	u32 client = mark != PROXY_CONNECTED;
	w->f.not_host = !client;
	u16 port = w->p.icmp ? htons(w->p.icmp) : policy_port(&w->key, client);
	u32 middle = !mark && w->p.protocol == PROTO_TCP && !is_new_syn(&w->p);
	w->f.unseen = middle;
	w->f.may_defer = !mark;
	decide_new(&w->key, ep, client, port, slot, middle, &w->f, &w->d);
	if (!mark && w->p.protocol == PROTO_TCP && nobody_to_ask(skb, &w->p, &w->d, is_new_syn(&w->p)))
		pass_by(&w->d);
	w->f.leg = mark ? proxy_leg(mark) : w->d.verdict == REDIRECT ? LEG_DOWNSTREAM : LEG_DIRECT;
	if (mark && w->d.verdict != DENY && !same_listener(mark, &w->d))
		return drop(HOOK_FROM_POD, w, RULE_SET_CHANGED);
	if (w->d.verdict == DENY)
		return drop(HOOK_FROM_POD, w, 0);
	if (w->d.verdict == REDIRECT && w->p.protocol != PROTO_TCP)
		return drop(HOOK_FROM_POD, w, NOT_STEERED);
	if (!w->p.icmp || w->p.outer.sport)
		ct_create(&w->key, &w->p, client, w->f.dst_identity, w->generation, w->now, &w->f, &w->d);
	if (w->d.verdict == ALLOW) {
		// What is judged elsewhere is recorded there, and judged whoever has begun it.
		if (!middle || w->f.deferred)
			sent_by_client(skb, w->f.deferred);
		if (!w->f.deferred)
			report(HOOK_FROM_POD, &w->f, &w->d);
		return pass(HOOK_FROM_POD, w, w->d.reason);
	}
	int reason = steer(skb, &w->p, w->d.rule_set, w->f.leg, 0);
	if (reason)
		return drop(HOOK_FROM_POD, w, reason);
	if (is_new_syn(&w->p))
		begin_splice(ep, skb->ifindex, w, w->f.leg, w->d.rule_set);
	report(HOOK_FROM_POD, &w->f, &w->d);
	count(HOOK_FROM_POD, REDIRECT, w->d.reason, w->f.length);
	return hand_over(skb, HOOK_FROM_POD, w, cfg, w->d.rule_set, w->f.leg);
}

int from_pod(struct __sk_buff *skb)
{
	struct work *w = take_work(HOOK_FROM_POD);
	u32 zero = 0, ifindex = skb->ifindex;
	struct config *cfg = config.lookup(&zero);
	struct endpoint *ep = endpoints.lookup(&ifindex);

	if (!w)
		return DROP;
	begin(skb, w, cfg);
	sent_by(skb);
	if (w->mode & CONFIG_DISABLED)
		return from_pod_disabled(skb, w, cfg, ep);
	if (!cfg || !ep)
		return drop(HOOK_FROM_POD, w, NO_ENDPOINT);
	int reason = read_packet(skb, w);
	w->f.src_identity = ep->identity[w->generation & 1];
	if (!reason)
		reason = source_reason(ep, &w->p, w->generation & 1);
	if (!reason)
		reason = fragment_ports(w);
	if (reason)
		return drop(HOOK_FROM_POD, w, reason);
	if (w->p.kind == KIND_NEIGHBOUR)
		return pass(HOOK_FROM_POD, w, CONTROL);
	if (w->p.kind == KIND_ICMP_ERROR) {
		int action = related(skb, HOOK_FROM_POD, w, cfg, ep, 1, SIDE_POD);
		if (w->d.reason == SERVICE)
			sent_by_client(skb, 1);
		return action;
	}

	make_key(w, 1, SIDE_POD);
	struct ct_value *e = conntrack.lookup(&w->key);
	// An answer to a node that happens to have asked from such a port is none.
	if ((!e || (e->flags & CT_CLIENT)) && is_tunnel(w))
		return drop(HOOK_FROM_POD, w, TUNNEL);
	u32 syn = is_new_syn(&w->p);
	u32 fresh = !e || ct_expired(e, w->p.protocol, w->now) || (syn && (ct_closing(e) || !(e->flags & CT_CLIENT)));
	if (!fresh) {
		w->f.leg = e->leg;
		w->f.dst_identity = e->peer_identity;
		w->f.reply = !(e->flags & CT_CLIENT);
		ct_revalidate(&w->key, ep, e, w->generation, &w->f, &w->d);
		if (w->d.verdict == DENY && syn) {
			// Who sends a SYN has no connection of this tuple any more, or never got one: its end can't be told to anyone, and
			// was not seen where its packets are dropped. So this one begins anew, under the policy of now. Not while the proxy
			// holds the old one; the record of this packet ends that.
			u32 state;
			fresh = !proxy_has(skb, &w->p.outer, w->p.family, &state);
			if (fresh)
				w->f.revoked = w->f.audited = 0;
		}
	}
	if (fresh)
		return from_pod_new(skb, w, cfg, ep);
	if (w->d.verdict == DENY)
		return drop(HOOK_FROM_POD, w, 0);
	ct_touch(e, &w->p, 1, w->f.length, w->now);
	if (e->leg == LEG_DIRECT) {
		if (is_client(e->flags) || is_deferred(e))
			sent_by_client(skb, is_deferred(e));
		return pass(HOOK_FROM_POD, w, known_reason(HOOK_FROM_POD, w, ep->netns_cookie));
	}
	if (e->flags & CT_TRANSLATED)	// to_pod of the client's device hands it over, with the ends that the proxy knows
		return pass(HOOK_FROM_POD, w, REPLY);
	reason = steer(skb, &w->p, e->rule_set, e->leg, 0);
	if (reason)
		return drop(HOOK_FROM_POD, w, reason);
	if (syn)
		begin_splice(ep, skb->ifindex, w, e->leg, e->rule_set);
	else if (w->p.payload)
		may_leave_now(&w->key, ep->netns_cookie);
	count(HOOK_FROM_POD, REDIRECT, known_reason(HOOK_FROM_POD, w, ep->netns_cookie), w->f.length);
	return hand_over(skb, HOOK_FROM_POD, w, cfg, e->rule_set, e->leg);
}
