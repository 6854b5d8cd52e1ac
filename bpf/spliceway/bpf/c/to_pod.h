// SPDX-License-Identifier: GPL-2.0-only
// TC egress on the host side of an endpoint's veth: the last line of defence.
#pragma once

// Did this packet leave a socket that the proxy accepted with another source than it has now? Then netfilter has translated it back: the client
// dialled a Service, and its packets were steered behind the translation (inbound.h). One that was masqueraded there talks with the node's address.
static __always_inline int is_translated_back(const struct work *w, const struct origin *o)
{
	const struct tuple *t = &w->p.outer;
	struct party client;

	if (o->from != FROM_PROXY_SOCK || o->mark == PROXY_CONNECTED || w->p.protocol != PROTO_TCP || w->p.kind != KIND_FLOW)
		return 0;
	if (same_addr(&o->real.dst, &t->dst) && o->real.dport == t->dport)
		return !same_addr(&o->real.src, &t->src) || (o->real.sport && o->real.sport != t->sport);
	find_party(&o->real.dst, w->generation & 1, &client);
	return is_host(client.identity);
}

#define TCP_FLAGS_AT 12		// with the header's length, 16 bits

// What of the proxy's may not go on to its client becomes the reset that the client waits for: the one that comes later would be behind a hole.
// (Where there is a state, make_reset_exact() sees to that.)
static __always_inline int denied_end(struct __sk_buff *skb, const struct packet *p)
{
	u16 before, after;

	if ((p->payload && without_payload(skb, p) != PASS) || bpf_skb_load_bytes(skb, p->tcp_at + TCP_FLAGS_AT, &before, sizeof(before)))
		return DROP;
	after = (before & htons(0xff00)) | htons(TCP_RST | TCP_ACK);
	if (bpf_l4_csum_replace(skb, p->tcp_at + TCP_CHECKSUM_AT, before, after, sizeof(after)) ||
	    bpf_skb_store_bytes(skb, p->tcp_at + TCP_FLAGS_AT, &after, sizeof(after), 0))
		return DROP;
	return PASS;
}

// Such a packet belongs to the connection between the real ends, which `inbound` has judged.
static __always_inline int translated_back(struct __sk_buff *skb, struct work *w, const struct origin *o)
{
	w->key.local = o->real.dst;
	w->key.remote = o->real.src;
	w->key.local_port = o->real.dport;
	w->key.remote_port = o->real.sport;
	w->key.protocol = PROTO_TCP;
	w->key.side = SIDE_NETWORK;
	struct ct_value *e = conntrack.lookup(&w->key);
	u32 ends = is_bare_reset(&w->p);

	// A reset of the proxy's gets out without an entry too, as in to_pod_new().
	if (!e || e->leg != LEG_DOWNSTREAM)
		return ends ? pass(HOOK_TO_POD, w, FROM_PROXY) : drop(HOOK_TO_POD, w, TUPLE_CONFLICT);
	w->f.leg = LEG_DOWNSTREAM;
	w->f.reply = 1;
	ct_revalidate(&w->key, NULL, e, w->generation, &w->f, &w->d);
	if (!ends && w->d.verdict == DENY) {
		drop(HOOK_TO_POD, w, 0);
		return w->p.payload || (w->p.tcp_flags & TCP_FIN) ? denied_end(skb, &w->p) : DROP;
	}
	if (!ends && has_moved(o->mark, e->rule_set))
		return drop(HOOK_TO_POD, w, RULE_SET_CHANGED);
	ct_touch(e, &w->p, 0, w->f.length, w->now);
	return pass(HOOK_TO_POD, w, FROM_PROXY);
}

// The kernel answers without the proxy's mark for a socket in TIME_WAIT, and for a listener that sends SYN cookies. Such an answer
// carries nothing but RST or ACK, or is the SYN-ACK to a SYN that was steered.
static __always_inline int is_bare(const struct packet *p, const struct ct_value *e)
{
	if (p->protocol != PROTO_TCP || p->payload || !(p->tcp_flags & (TCP_RST | TCP_ACK)) || (p->tcp_flags & TCP_FIN))
		return 0;
	return !(p->tcp_flags & TCP_SYN) || (e->leg == LEG_DOWNSTREAM && (e->flags & CT_CLIENT));
}

// May an answer of the node that has not the node's address come to a pod that has dialled another one? If netfilter has given the server's socket
// that address (a Service whose backend is a process of the node, as the API server can be), and the pod may reach the server. That address is of
// outside, or nobody's. A UDP socket of IPv4 that is bound to no address can't choose one that is not the node's; one of IPv6 can. 0, or the reason
// to drop it.
static __always_inline int wrong_server(const struct work *w, const struct ct_value *e, const struct origin *o)
{
	const struct tuple *t = &w->p.outer;
	u32 slot = w->generation & 1;
	struct party client, server;
	struct decision d = {};

	if (!o->known || !is_outside(e->peer_identity))
		return FOREIGN_SOURCE;
	find_party(&o->real.src, slot, &server);
	if (w->p.family == 4 && w->p.protocol != PROTO_TCP && !o->real.src.w[3])
		server.identity = IDENTITY_HOST;
	if (!is_nodes(server.identity, server.ifindex))
		return FOREIGN_SOURCE;
	if (w->p.protocol == PROTO_TCP && (!same_addr(&o->real.dst, &t->dst) || o->real.dport != t->dport))
		return FOREIGN_SOURCE;
	find_party(&t->dst, slot, &client);
	decide(&client, &server, w->p.protocol, o->real.sport, slot, &d);
	return d.verdict == ALLOW || only_audited(&d) ? 0 : d.verdict == REDIRECT ? NOT_STEERED : d.reason;
}

// Whether a packet of a known connection comes from where its leg's packets come from: 0, or the reason to drop it.
static __always_inline int wrong_leg(const struct work *w, const struct ct_value *e, const struct origin *o)
{
	const struct packet *p = &w->p;

	if (o->from == FROM_PROXY_SOCK && e->leg != proxy_leg(o->mark))
		return TUPLE_CONFLICT;
	if (o->from == FROM_PROXY_SOCK)	// the reset that ends it gets out
		return !is_bare_reset(p) && has_moved(o->mark, e->rule_set) ? RULE_SET_CHANGED : 0;
	if (e->leg != LEG_DIRECT && o->from == FROM_ELSEWHERE)
		return NOT_STEERED;
	if (o->from != FROM_NODE)
		return 0;
	if (e->leg != LEG_DIRECT)
		return is_bare(p, e) ? 0 : FOREIGN_SOURCE;
	if (!is_nodes(e->peer_identity, e->peer_ifindex))
		return is_client(e->flags) || is_deferred(e) ? wrong_server(w, e, o) : FOREIGN_SOURCE;
	return 0;
}

// A packet that is no answer of the proxy's own goes to the pod only if the proxy has no socket for it: one it has opened for this pod (its
// answers are steered before they come here), or one that talks with the pod about these ends (a SYN would take its place).
static __always_inline int is_proxied(struct __sk_buff *skb, const struct work *w, const struct ct_value *e)
{
	const struct tuple *o = &w->p.outer;
	struct tuple back = { .src = o->dst, .dst = o->src, .sport = o->dport, .dport = o->sport };
	u32 state;

	if (w->p.protocol != PROTO_TCP)
		return 0;
	if (proxy_has(skb, o, w->p.family, &state) == PROXY_CONNECTED)
		return NOT_STEERED;
	if (e && e->leg == LEG_DOWNSTREAM && proxy_has(skb, &back, w->p.family, &state))
		return TUPLE_CONFLICT;
	return 0;
}

// Did this packet leave a socket by which the proxy dialled other ends than it has now (a Service)?
static __always_inline int is_dialled_elsewhere(const struct packet *p, const struct origin *o)
{
	const struct tuple *t = &p->outer;

	return o->mark == PROXY_CONNECTED && p->protocol == PROTO_TCP &&
	       (!same_addr(&o->real.dst, &t->dst) || o->real.dport != t->dport || !same_addr(&o->real.src, &t->src) ||
		(o->real.sport && o->real.sport != t->sport));
}

// Another endpoint on the same bridge: what it says of itself was checked at its own device.
static __always_inline int is_neighbour_port(struct __sk_buff *skb, const struct endpoint *ep)
{
	u32 ifindex = skb->ingress_ifindex;
	struct endpoint *other = ep->bridge ? endpoints.lookup(&ifindex) : NULL;

	return other && other->bridge == ep->bridge;
}

// May the packets of an endpoint with this device come in here? By its own device, where their source was checked, or by the bridge that it is a
// port of, when they were routed there. Others may be ports of that bridge, too, which nobody checks, so the note of the endpoint's own hook must be
// on them; where filters of others reset it, or the endpoint's index has no bits for a note, pods of that same bridge take them all the same.
static __always_inline int came_from(struct __sk_buff *skb, const struct work *w, const struct endpoint *ep, u32 remote_ifindex)
{
	u32 in = skb->ingress_ifindex;

	// The node served this address: when it does no more, whoever answers by it comes from where a Service leads.
	if (remote_ifindex == in || remote_ifindex == SERVED_BY_NODE || (!in && is_sender(skb, remote_ifindex)))
		return 1;
	struct endpoint *other = in ? endpoints.lookup(&remote_ifindex) : NULL;
	if (!other || other->bridge != in)
		return 0;
	return is_sender(skb, remote_ifindex) || (ep->bridge == in && !((w->mode & CONFIG_NOTES_STAY) && (remote_ifindex & SENDER_BITS)));
}

// Did the proxy dial something that led here, and ask other rules than those for here? A reset gets out all the same.
static __always_inline int dialled_under_others(const struct work *w, const struct origin *o)
{
	return o->mark == PROXY_CONNECTED && w->p.protocol == PROTO_TCP && w->p.kind == KIND_FLOW && !is_bare_reset(&w->p) &&
	       asked_others(w, &o->real);
}

// What has to go to the proxy and comes from elsewhere has passed no hook with the ends that it has now: it is steered here, or dropped.
static __always_inline int steer_here(struct __sk_buff *skb, struct work *w, const struct config *cfg, const struct origin *o)
{
	if (o->from != FROM_ELSEWHERE || w->p.protocol != PROTO_TCP)
		return drop(HOOK_TO_POD, w, NOT_STEERED);
	// The record is of the verdict that stands in the way, not of what the other end's hook would have said.
	struct decision own = w->d;
	u32 src_identity = w->f.src_identity, dst_identity = w->f.dst_identity;
	int action = inbound(skb, HOOK_TO_POD, w, cfg);
	if (action != PASS)
		return action;
	w->d = own;
	w->f.src_identity = src_identity;
	w->f.dst_identity = dst_identity;
	w->f.leg = LEG_DIRECT;
	return drop(HOOK_TO_POD, w, NOT_STEERED);
}

static __always_inline int to_pod_new(struct __sk_buff *skb, struct work *w, const struct config *cfg, const struct endpoint *ep,
				      const struct origin *o)
{
	// A packet of a connection that the proxy accepted goes to its client; everything else goes to a server.
	u32 client = o->from == FROM_PROXY_SOCK && o->mark != PROXY_CONNECTED;
	u16 port = w->p.icmp ? htons(w->p.icmp) : policy_port(&w->key, client);

	if (w->p.echo_reply)
		return drop(HOOK_TO_POD, w, UNTRACKED);
	// A reset of the proxy's gets out without an entry too: it ends what may not go on, and carries nothing.
	if (o->from == FROM_PROXY_SOCK && is_bare_reset(&w->p)) {
		make_reset_exact(skb, w, ep->netns_cookie);
		return pass(HOOK_TO_POD, w, FROM_PROXY);
	}
	u32 middle = o->from != FROM_PROXY_SOCK && w->p.protocol == PROTO_TCP && !is_new_syn(&w->p);
	decide_new(&w->key, ep, client, port, w->generation & 1, middle, &w->f, &w->d);
	if (o->from == FROM_PROXY_SOCK) {
		w->f.leg = proxy_leg(o->mark);
		if (w->d.verdict != DENY && !same_listener(o->mark, &w->d))
			return drop(HOOK_TO_POD, w, RULE_SET_CHANGED);
	} else {
		if (o->from == FROM_NODE && !is_host(w->f.src_identity))
			return drop(HOOK_TO_POD, w, FOREIGN_SOURCE);
		// A local pod's packet comes from its own veth, where its source was checked: not from a tunnel, say.
		if (o->from == FROM_ELSEWHERE && w->f.remote_ifindex &&
		    (w->f.remote_ifindex == SERVED_BY_NODE || !came_from(skb, w, ep, w->f.remote_ifindex)))
			return drop(HOOK_TO_POD, w, SPOOFED_SOURCE);
		// Nobody was there to be asked, or the connection is older than the policy.
		if (only_audited(&w->d))
			pass_by(&w->d);
		if (w->d.verdict == REDIRECT)
			return steer_here(skb, w, cfg, o);
	}
	if (w->d.verdict == DENY)
		return drop(HOOK_TO_POD, w, 0);
	if (!w->p.icmp || w->p.outer.sport)
		ct_create(&w->key, &w->p, client, w->f.src_identity, w->generation, w->now, &w->f, &w->d);
	if (o->from == FROM_PROXY_SOCK) {
		if (is_dialled_elsewhere(&w->p, o)) {
			struct ct_value *e = conntrack.lookup(&w->key);
			if (e)
				e->flags |= CT_TRANSLATED;
		} else if (is_new_syn(&w->p))
			begin_splice(ep, skb->ifindex, w, LEG_UPSTREAM, w->d.rule_set);
		return pass(HOOK_TO_POD, w, FROM_PROXY);
	}
	report(HOOK_TO_POD, &w->f, &w->d);
	return pass(HOOK_TO_POD, w, w->d.reason);
}

// May this be an answer to the proxy that no hook has seen before: of a server on the node (a process of the node may be the node, and nobody
// outside), or of one outside, which came to the address that the proxy's connection was masqueraded with?
static __always_inline int may_be_answer(const struct work *w, const struct origin *o, const struct ct_value *e)
{
	struct party server;

	if (o->from == FROM_PROXY_SOCK || w->p.protocol != PROTO_TCP || (e && e->leg == LEG_DIRECT))
		return 0;
	find_party(&w->p.outer.src, w->generation & 1, &server);
	return o->from == FROM_NODE ? is_nodes(server.identity, server.ifindex) : !server.ifindex;
}

int to_pod(struct __sk_buff *skb)
{
	struct work *w = take_work(HOOK_TO_POD);
	u32 zero = 0, ifindex = skb->ifindex;
	struct config *cfg = config.lookup(&zero);
	struct endpoint *ep = endpoints.lookup(&ifindex);

	if (!w)
		return DROP;
	begin(skb, w, cfg);
	if (w->mode & CONFIG_DISABLED)
		return to_pod_disabled(skb, w, cfg, ep);
	if (!cfg || !ep)
		return drop(HOOK_TO_POD, w, NO_ENDPOINT);
	int reason = read_packet(skb, w);
	struct origin o = {};	// all of it: Linux 6.1 refuses what the compiler may read ahead of the checks
	find_origin(skb, &w->p, &o);
	w->f.not_host = o.from != FROM_NODE;
	if (!reason && w->p.kind == KIND_NEIGHBOUR)
		return o.from == FROM_NODE || is_neighbour_port(skb, ep) ? pass(HOOK_TO_POD, w, CONTROL)
									 : drop(HOOK_TO_POD, w, SPOOFED_SOURCE);
	if (!reason)
		reason = fragment_ports(w);
	if (!reason && !is_own(ep, &w->p.outer.dst))
		reason = NO_ENDPOINT;
	if (reason)
		return drop(HOOK_TO_POD, w, reason);
	if (w->p.kind == KIND_ICMP_ERROR) {
		if (!same_addr(&w->p.inner.src, &w->p.outer.dst))
			return drop(HOOK_TO_POD, w, UNTRACKED);
		return related(skb, HOOK_TO_POD, w, cfg, ep, 0, SIDE_POD);
	}

	if (is_translated_back(w, &o))
		return translated_back(skb, w, &o);
	make_key(w, 0, SIDE_POD);
	struct ct_value *e = conntrack.lookup(&w->key);
	if (may_be_answer(w, &o, e)) {
		u32 state, mark = proxy_has(skb, &w->p.outer, w->p.family, &state);
		make_key(w, 1, SIDE_NETWORK);
		struct ct_value *server = conntrack.lookup(&w->key);
		enum answer kind = answer_kind(w, server, mark, state);
		if (kind != NO_ANSWER)
			return hand_answer_over(skb, HOOK_TO_POD, w, cfg, server, kind);
		make_key(w, 0, SIDE_POD);
	}
	if (o.from == FROM_PROXY_SOCK && dialled_under_others(w, &o)) {
		w->f.leg = LEG_UPSTREAM;
		return drop(HOOK_TO_POD, w, NOT_STEERED);
	}
	if (o.from == FROM_ELSEWHERE && !(e && e->peer_ifindex)) {
		reason = masqueraded_sender(skb, w, e && !is_new_syn(&w->p));
		if (reason)
			return drop(HOOK_TO_POD, w, reason);
	}
	u32 syn = is_new_syn(&w->p);
	// Both ends open at once: the pod would be taken for a server, whose answers nobody judges.
	if (e && syn && o.from == FROM_ELSEWHERE && is_deferred(e) && !ct_expired(e, w->p.protocol, w->now) && !ct_closing(e))
		return drop(HOOK_TO_POD, w, TUPLE_CONFLICT);
	u32 fresh = !e || ct_expired(e, w->p.protocol, w->now) || (syn && ct_closing(e)) ||
		    (syn && o.from != FROM_PROXY_SOCK && (e->flags & CT_CLIENT));
	if (!fresh) {
		w->f.leg = e->leg;
		w->f.src_identity = e->peer_identity;
		w->f.dst_identity = ep->identity[w->generation & 1];
		w->f.reply = !!(e->flags & CT_CLIENT);
		ct_revalidate(&w->key, ep, e, w->generation, &w->f, &w->d);
		// What once went directly and may not any more leaves its ports to the proxy.
		fresh = e->leg == LEG_DIRECT && syn && o.from == FROM_PROXY_SOCK && w->d.verdict == DENY;
	}
	if (fresh) {
		reason = o.from == FROM_PROXY_SOCK ? 0 : is_proxied(skb, w, e);
		return reason ? drop(HOOK_TO_POD, w, reason) : to_pod_new(skb, w, cfg, ep, &o);
	}
	reason = wrong_leg(w, e, &o);
	if (reason)
		return drop(HOOK_TO_POD, w, reason);
	// A local pod's packets come from its own veth, where their source was checked.
	if (o.from == FROM_ELSEWHERE && e->peer_ifindex && !came_from(skb, w, ep, e->peer_ifindex))
		return drop(HOOK_TO_POD, w, SPOOFED_SOURCE);
	// The reset that tells a pod of the end of a proxied connection gets out, whatever the policy says by now.
	u32 ends = e->leg != LEG_DIRECT && is_bare_reset(&w->p);
	if (w->d.verdict == DENY && !ends) {
		if (e->leg != LEG_DIRECT)
			note_hole(w, ep->netns_cookie);
		return drop(HOOK_TO_POD, w, 0);
	}
	ct_touch(e, &w->p, 0, w->f.length, w->now);
	if (ends)
		make_reset_exact(skb, w, ep->netns_cookie);
	if (e->leg != LEG_DIRECT && waits_to_leave(w, ep->netns_cookie)) {
		note_hole(w, ep->netns_cookie);
		return without_payload(skb, &w->p);
	}
	if (syn && e->leg == LEG_UPSTREAM && !(e->flags & CT_TRANSLATED))
		begin_splice(ep, skb->ifindex, w, e->leg, e->rule_set);
	if (e->leg != LEG_DIRECT && !w->f.audited)
		return pass(HOOK_TO_POD, w, FROM_PROXY);
	return pass(HOOK_TO_POD, w, known_reason(HOOK_TO_POD, w, ep->netns_cookie));
}
