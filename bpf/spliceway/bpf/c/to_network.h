// SPDX-License-Identifier: GPL-2.0-only
// TC egress on the uplinks, and wherever else no endpoint is: packets of the node's pods that leave with another destination than from_pod has seen,
// since kube-proxy (or whoever else) translated it in between. Judged here by their real ends; where rules for HTTP apply, steered as at a pod (inbound.h).
#pragma once

// ICMP without an identifier has no connection.
static __always_inline void remember_translated(struct work *w)
{
	if (!w->p.icmp || w->p.outer.sport)
		ct_create(&w->key, &w->p, 1, w->f.dst_identity, w->generation, w->now, &w->f, &w->d);
}

// netfilter knows the connection by now, and would take packets of its server for answers: they are refused where they come in (from_network.h).
static __always_inline int refused(struct __sk_buff *skb, struct work *w, u32 reason)
{
	int action = drop(HOOK_TO_NETWORK, w, reason);

	if (is_led_on(skb))
		remember_translated(w);
	return action;
}

// An ICMP error of a pod about a connection to a Service, in which netfilter has put the real server: it goes where that may go.
static __always_inline int error_led_on(struct work *w)
{
	make_quoted_key(w, 1, SIDE_TRANSLATED);
	struct ct_value *e = conntrack.lookup(&w->key);
	if (!e || ct_expired(e, w->key.protocol, w->now) || e->judged != (w->generation << 2 | ALLOW))
		return drop(HOOK_TO_NETWORK, w, UNTRACKED);
	return pass(HOOK_TO_NETWORK, w, RELATED);
}

// By the ends that it has now. `w->key` is of SIDE_TRANSLATED.
static __always_inline int translated(struct __sk_buff *skb, struct work *w, const struct config *cfg, u32 known)
{
	u32 slot = w->generation & 1;
	u32 tcp = w->p.protocol == PROTO_TCP && !w->p.first_fragment && !w->p.later_fragment, state;

	decide_ends(&w->key, NULL, 1, server_port(&w->p), slot, &w->f, &w->d);
	if (w->d.verdict == DENY)
		return refused(skb, w, 0);
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
		return refused(skb, w, NOT_STEERED);
	remember_translated(w);
	if (!known)
		report(HOOK_TO_NETWORK, &w->f, &w->d);
	return pass(HOOK_TO_NETWORK, w, w->d.reason);
}

// By its pod's egress policy: its address is the node's by now.
static __always_inline int masqueraded_out(struct __sk_buff *skb, struct work *w, u32 known)
{
	int reason = judge_sender(skb, w);

	if (reason)
		return drop(HOOK_TO_NETWORK, w, reason);
	remember_translated(w);
	if (!known && is_led_on(skb))		// else from_pod has
		report(HOOK_TO_NETWORK, &w->f, &w->d);
	return pass(HOOK_TO_NETWORK, w, w->d.reason);
}

// IPsec without a device of its own (a policy of xfrm) makes the node's packet of the pod's, notes and all. What is inside was judged as it was,
// unless it went to a Service.
static __always_inline int is_wrapped(const struct work *w, const struct party *sender)
{
	const struct tuple *t = &w->p.outer;
	u32 nat = w->p.protocol == PROTO_UDP && t->sport == htons(PORT_ESP_IN_UDP) && t->dport == t->sport;

	return is_host(sender->identity) && (w->p.protocol == PROTO_ESP || nat);
}

static __always_inline int may_wrap(const struct packet *p)
{
	u16 nat = htons(PORT_ESP_IN_UDP);

	return p->protocol == PROTO_UDP ? p->outer.sport == nat || p->outer.dport == nat : p->protocol != PROTO_TCP;
}

// Of a pod: what from_pod has judged with these ends passes, one look is enough. (Of a Service that nobody translates it has judged nothing.)
static __always_inline int from_client(struct __sk_buff *skb, struct work *w, const struct config *cfg)
{
	u32 syn = is_new_syn(&w->p);
	struct party client;

	make_key(w, 1, SIDE_POD);
	struct ct_value *e = conntrack.lookup(&w->key);
	if (e && (e->flags & CT_CLIENT) && !is_deferred(e) && !ct_expired(e, w->p.protocol, w->now)) {
		ct_revalidate(&w->key, NULL, e, w->generation, &w->f, &w->d);
		if (w->d.verdict == DENY)
			return drop(HOOK_TO_NETWORK, w, 0);
		// What is steered never comes here: this one has its ports only.
		return e->leg == LEG_DIRECT ? pass(HOOK_TO_NETWORK, w, w->d.reason) : drop(HOOK_TO_NETWORK, w, TUPLE_CONFLICT);
	}
	w->key.side = SIDE_TRANSLATED;
	e = conntrack.lookup(&w->key);
	u32 known = e && !syn && !ct_expired(e, w->p.protocol, w->now) && (!e->peer_ifindex || is_sender(skb, e->peer_ifindex));
	if (known && !is_host(e->peer_identity) && e->judged == (w->generation << 2 | ALLOW)) {
		e->seen = w->now;
		e->flags |= CT_REPLIED;		// its answers pass no hook with these ends
		return pass(HOOK_TO_NETWORK, w, REPLY);
	}
	if (is_tunnel(w))
		return drop(HOOK_TO_NETWORK, w, TUNNEL);
	find_party(&w->p.outer.src, w->generation & 1, &client);
	if (client.netns_cookie) {
		// Its own hook has noted whose it is; where somebody reset that, it still came in by its device, or by its bridge.
		u32 in = skb->ingress_ifindex, ifindex = client.ifindex;
		struct endpoint *ep = endpoints.lookup(&ifindex);
		if (in != ifindex && !is_sender(skb, ifindex) && !(ep && ep->bridge && ep->bridge == in))
			return drop(HOOK_TO_NETWORK, w, SPOOFED_SOURCE);
		return translated(skb, w, cfg, known);
	}
	// A Service is dialled by TCP or UDP: anything else, from another address, has it inside.
	if (is_led_on(skb) && (is_wrapped(w, &client) || may_wrap(&w->p)))
		return drop(HOOK_TO_NETWORK, w, WRAPPED);
	if (is_wrapped(w, &client))
		return PASS;
	return skb->tc_index & SENT_BY_CLIENT ? masqueraded_out(skb, w, known) : PASS;
}

// Has somebody's filter reset the note of a pod's packet? If it has other ends than those that from_pod has judged, or those of a Service, then the pod
// is its client: what a server answers is translated in its source. (Pieces are not asked: without their first one they get nowhere.)
static __always_inline int has_lost_note(struct __sk_buff *skb, struct work *w)
{
	struct party sender;

	if (skb->tc_index || w->p.later_fragment || (w->p.protocol != PROTO_TCP && w->p.protocol != PROTO_UDP))
		return 0;
	find_party(&w->p.outer.src, w->generation & 1, &sender);
	if (!sender.netns_cookie)
		return 0;
	make_key(w, 1, SIDE_POD);
	struct ct_value *e = conntrack.lookup(&w->key);
	return !e || is_deferred(e);
}

// `network_at`: as for parse_packet. `stays`: it goes to a pod of this node, by a bridge, and is judged there.
static __always_inline int judge_leaving(struct __sk_buff *skb, u32 network_at, u32 *stays)
{
	struct work *w = take_work(HOOK_TO_NETWORK);
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);
	struct origin o = {};

	if (!w)
		return DROP;
	begin(skb, w, cfg);
	if (!cfg)
		return PASS;
	if (w->mode & CONFIG_DISABLED)
		return to_network_disabled(skb, w, cfg, network_at);
	int reason = read_packet_at(skb, w, network_at);
	find_origin(skb, &w->p, &o);
	w->f.leg = o.from == FROM_PROXY_SOCK ? LEG_UPSTREAM : LEG_DIRECT;
	if (o.from == FROM_PROXY_SOCK && !reason && dialled_under_others(w, &o))
		return drop(HOOK_TO_NETWORK, w, NOT_STEERED);
	if (o.from == FROM_ELSEWHERE && is_no_note(skb, w))
		set_note(skb, 0);
	if (o.from == FROM_ELSEWHERE && skb->tc_index) {
		struct party to;
		find_party(&w->p.outer.dst, w->generation & 1, &to);
		*stays = !!to.netns_cookie;
		if (*stays)
			return PASS;
	}
	if (o.from == FROM_ELSEWHERE && !reason && w->p.kind == KIND_ICMP_ERROR && is_led_on(skb))
		return error_led_on(w);
	if (o.from != FROM_ELSEWHERE || (!reason && w->p.kind != KIND_FLOW))
		return PASS;
	u32 client = skb->tc_index & SENT_BY_CLIENT;
	if (!client && (reason || (!is_new_syn(&w->p) && !has_lost_note(skb, w))))
		return PASS;
	if (!reason)
		reason = fragment_ports(w);
	if (reason)
		return drop(HOOK_TO_NETWORK, w, reason);
	return from_client(skb, w, cfg);
}

static __always_inline int leave_node(struct __sk_buff *skb, u32 network_at)
{
	u32 stays = 0;
	int action = judge_leaving(skb, network_at, &stays);

	if (!stays)
		set_note(skb, skb->tc_index ? HAS_LEFT : 0);	// where the network is a veth, the rest would be taken for another node's
	return action;
}

int to_network(struct __sk_buff *skb)
{
	return leave_node(skb, ETH_HEADER);
}

// The same on devices without Ethernet.
int to_network_l3(struct __sk_buff *skb)
{
	return leave_node(skb, 0);
}
