// SPDX-License-Identifier: GPL-2.0-only
// TC egress on the uplinks: packets of the node's pods that leave with another destination than from_pod has judged, since kube-proxy (or whoever
// else) translated it in between. Judged here by their real ends; where rules for HTTP apply, steered as at a pod (inbound.h).
#pragma once

// ICMP without an identifier has no connection.
static __always_inline void remember_translated(struct work *w)
{
	if (!w->p.icmp || w->p.outer.sport)
		ct_create(&w->key, &w->p, 1, w->f.dst_identity, w->generation, w->now, &w->f, &w->d);
}

// By the ends that it has now. `w->key` is of SIDE_TRANSLATED.
static __always_inline int translated(struct __sk_buff *skb, struct work *w, const struct config *cfg, u32 known)
{
	u32 slot = w->generation & 1;
	u32 tcp = w->p.protocol == PROTO_TCP && !w->p.first_fragment && !w->p.later_fragment, state;

	decide_ends(&w->key, NULL, 1, server_port(&w->p), slot, &w->f, &w->d);
	if (w->d.verdict == DENY)
		return drop(HOOK_TO_NETWORK, w, 0);
	// A connection that the proxy has goes on there, or not at all.
	if (tcp && (w->d.verdict == REDIRECT || proxy_has(skb, &w->p.outer, w->p.family, &state))) {
		struct decision own = w->d;
		int action = inbound(skb, HOOK_TO_NETWORK, w, cfg);
		if (action != PASS)
			return action;
		make_key(w, 1, SIDE_TRANSLATED);
		w->d = own;
		w->f.leg = LEG_DIRECT;
		w->f.reply = 0;
	}
	if (only_audited(&w->d))
		pass_by(&w->d);
	if (w->d.verdict != ALLOW)
		return drop(HOOK_TO_NETWORK, w, NOT_STEERED);
	remember_translated(w);
	if (!known)
		report(HOOK_TO_NETWORK, &w->f, &w->d);
	return pass(HOOK_TO_NETWORK, w, w->d.reason);
}

// By its pod's egress policy: its address is the node's by now.
static __always_inline int masqueraded_out(struct __sk_buff *skb, struct work *w)
{
	int reason = judge_sender(skb, w);

	if (reason)
		return drop(HOOK_TO_NETWORK, w, reason);
	remember_translated(w);
	return pass(HOOK_TO_NETWORK, w, w->d.reason);
}

// Of a pod: what from_pod has judged with these ends passes, one look is enough.
static __always_inline int from_client(struct __sk_buff *skb, struct work *w, const struct config *cfg)
{
	u32 syn = is_new_syn(&w->p);
	struct party client;

	make_key(w, 1, SIDE_POD);
	struct ct_value *e = conntrack.lookup(&w->key);
	if (e && (e->flags & CT_CLIENT) && !ct_expired(e, w->p.protocol, w->now)) {
		ct_revalidate(&w->key, NULL, e, w->generation, &w->f, &w->d);
		if (w->d.verdict == DENY)
			return drop(HOOK_TO_NETWORK, w, 0);
		// What is steered never comes here: this one has its ports only.
		return e->leg == LEG_DIRECT ? pass(HOOK_TO_NETWORK, w, w->d.reason) : drop(HOOK_TO_NETWORK, w, TUPLE_CONFLICT);
	}
	w->key.side = SIDE_TRANSLATED;
	e = conntrack.lookup(&w->key);
	u32 known = e && !syn && !ct_expired(e, w->p.protocol, w->now) && (!e->peer_ifindex || is_sender(skb, e->peer_ifindex));
	if (known && e->judged == (w->generation << 2 | ALLOW)) {
		e->seen = w->now;
		e->flags |= CT_REPLIED;		// its answers pass no hook with these ends
		return pass(HOOK_TO_NETWORK, w, REPLY);
	}
	if (is_tunnel(w))
		return drop(HOOK_TO_NETWORK, w, TUNNEL);
	find_party(&w->p.outer.src, w->generation & 1, &client);
	if (client.ifindex)
		return translated(skb, w, cfg, known);
	return skb->tc_index & SENT_BY_CLIENT ? masqueraded_out(skb, w) : PASS;
}

// `network_at`: as for parse_packet.
static __always_inline int judge_leaving(struct __sk_buff *skb, u32 network_at)
{
	struct work *w = take_work(HOOK_TO_NETWORK);
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);
	struct origin o = {};

	if (!w)
		return DROP;
	begin(skb, w);
	if (!cfg)
		return PASS;
	int reason = read_packet_at(skb, w, network_at);
	find_origin(skb, &w->p, &o);
	w->f.leg = o.from == FROM_PROXY_SOCK ? LEG_UPSTREAM : LEG_DIRECT;
	if (o.from == FROM_PROXY_SOCK && !reason && dialled_under_others(w, &o))
		return drop(HOOK_TO_NETWORK, w, NOT_STEERED);
	if (o.from != FROM_ELSEWHERE || (!reason && w->p.kind != KIND_FLOW))
		return PASS;
	u32 client = skb->tc_index & SENT_BY_CLIENT;
	// Without its note (somebody's filter may reset it) a connection still begins with a SYN.
	if (!client && (reason || !is_new_syn(&w->p)))
		return PASS;
	if (!reason)
		reason = fragment_ports(w);
	if (reason)
		return drop(HOOK_TO_NETWORK, w, reason);
	return from_client(skb, w, cfg);
}

int to_network(struct __sk_buff *skb)
{
	int action = judge_leaving(skb, ETH_HEADER);

	skb->tc_index = 0;	// where the network is a veth, it would be taken for another node's
	return action;
}

// The same on devices without Ethernet.
int to_network_l3(struct __sk_buff *skb)
{
	int action = judge_leaving(skb, 0);

	skb->tc_index = 0;
	return action;
}
