// SPDX-License-Identifier: GPL-2.0-only
// The kill switch is on: nothing is judged, and nothing new is steered. What the proxy has goes on to it, and what is spliced stays so, since the
// switch must not cut a connection either. Nothing is remembered of what passes, and what is known of ports that another connection takes is
// forgotten: when the switch is off again, everything is judged by its next packet.
#pragma once

// Which leg of the proxy's does this segment belong to? LEG_DIRECT: none. By the socket, whatever the policy says by now; one in TIME_WAIT has lost
// its mark, and may be any process's of the node. `w->key` is the connection's.
static __always_inline u8 leg_at_proxy(struct __sk_buff *skb, struct work *w)
{
	u32 state, mark = proxy_has(skb, &w->p.outer, w->p.family, &state), syn = is_new_syn(&w->p);

	if (mark)
		return proxy_leg(mark);
	if (syn && w->key.side == SIDE_POD)
		conntrack.delete(&w->key);
	if (syn || state != STATE_TIME_WAIT)
		return LEG_DIRECT;
	struct ct_value *e = conntrack.lookup(&w->key);
	return e ? e->leg : LEG_DIRECT;
}

static __always_inline int hand_on(struct __sk_buff *skb, u32 hook, struct work *w, const struct config *cfg, u8 leg)
{
	if (leg == LEG_DIRECT)
		return PASS;
	w->f.leg = leg;
	count(hook, REDIRECT, REPLY, w->f.length);
	return hand_over(skb, hook, w, cfg, 0, leg);
}

// An ICMP error about a connection that the proxy has.
static __always_inline int error_at_proxy(struct __sk_buff *skb, u32 hook, struct work *w, const struct config *cfg, u8 side)
{
	make_quoted_key(w, 1, side);
	struct ct_value *e = conntrack.lookup(&w->key);
	return hand_on(skb, hook, w, cfg, e && !ct_expired(e, w->key.protocol, w->now) ? e->leg : LEG_DIRECT);
}

static __always_inline int is_segment(const struct work *w)
{
	return w->p.kind == KIND_FLOW && w->p.protocol == PROTO_TCP && !w->p.first_fragment && !w->p.later_fragment;
}

static __always_inline int from_pod_disabled(struct __sk_buff *skb, struct work *w, const struct config *cfg, const struct endpoint *ep)
{
	set_note(skb, 0);
	if (read_packet(skb, w))
		return PASS;
	if (w->p.kind == KIND_ICMP_ERROR)
		return error_at_proxy(skb, HOOK_FROM_POD, w, cfg, SIDE_POD);
	if (!is_segment(w))
		return PASS;
	make_key(w, 1, SIDE_POD);
	u8 leg = leg_at_proxy(skb, w);
	if (leg != LEG_DIRECT && ep && w->p.payload)
		may_leave_now(&w->key, ep->netns_cookie);
	return hand_on(skb, HOOK_FROM_POD, w, cfg, leg);
}

static __always_inline int to_pod_disabled(struct __sk_buff *skb, struct work *w, const struct config *cfg, const struct endpoint *ep)
{
	struct origin o = {};

	if (read_packet(skb, w) || !is_segment(w))
		return PASS;
	find_origin(skb, &w->p, &o);
	if (o.from != FROM_PROXY_SOCK) {
		// An answer to the proxy, or for it to a Service: only here it has the ends that the proxy knows.
		make_key(w, 1, SIDE_NETWORK);
		u8 leg = leg_at_proxy(skb, w);
		make_key(w, 0, SIDE_POD);
		if (is_new_syn(&w->p) && leg == LEG_DIRECT)
			conntrack.delete(&w->key);
		return hand_on(skb, HOOK_TO_POD, w, cfg, leg);
	}
	make_key(w, 0, SIDE_POD);
	if (!ep)
		return PASS;
	if (is_bare_reset(&w->p)) {
		make_reset_exact(skb, w, ep->netns_cookie);
	} else if (waits_to_leave(w, ep->netns_cookie)) {
		note_hole(w, ep->netns_cookie);
		return without_payload(skb, &w->p);
	}
	return PASS;
}

// `network_at`: as for parse_packet.
static __always_inline int to_network_disabled(struct __sk_buff *skb, struct work *w, const struct config *cfg, u32 network_at)
{
	struct origin o = {};

	if (read_packet_at(skb, w, network_at) || !is_segment(w))
		return PASS;
	find_origin(skb, &w->p, &o);
	if (o.from != FROM_ELSEWHERE)
		return PASS;
	make_key(w, 1, SIDE_NETWORK);
	return hand_on(skb, HOOK_TO_NETWORK, w, cfg, leg_at_proxy(skb, w));
}

static __always_inline int from_network_disabled(struct __sk_buff *skb, struct work *w, const struct config *cfg, u32 network_at)
{
	set_note(skb, 0);
	if (read_packet_at(skb, w, network_at))
		return PASS;
	if (w->p.kind == KIND_ICMP_ERROR)
		return error_at_proxy(skb, HOOK_FROM_NETWORK, w, cfg, SIDE_NETWORK);
	if (!is_segment(w))
		return PASS;
	make_key(w, 1, SIDE_NETWORK);
	return hand_on(skb, HOOK_FROM_NETWORK, w, cfg, leg_at_proxy(skb, w));
}
