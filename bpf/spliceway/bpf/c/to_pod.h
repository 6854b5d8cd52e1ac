// SPDX-License-Identifier: GPL-2.0-only
// clsact egress on the host side of an endpoint's veth: the last line of defence.
#pragma once

// Does this packet come from a socket of the proxy? No pod, no other process of the node and no packet from outside can have one: the
// mark sits in the socket, and only the sockops program of the proxy's cgroup sets it.
static __always_inline int sent_by_proxy(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	return sk && is_proxy_sock(sk);
}

#define FROM_ELSEWHERE 0	// forwarded: from another pod or from outside
#define FROM_NODE 1		// a socket of the node
#define FROM_NODE_PROXY 2

static __always_inline u32 origin(struct __sk_buff *skb)
{
	if (skb->ingress_ifindex)
		return FROM_ELSEWHERE;
	return sent_by_proxy(skb) ? FROM_NODE_PROXY : FROM_NODE;
}

// The kernel answers without the proxy's mark for a socket in TIME_WAIT, and for a listener that sends SYN cookies. Such an answer
// carries nothing but RST or ACK, or is the SYN-ACK to a SYN that was steered.
static __always_inline int is_bare(const struct packet *p, const struct ct_value *e)
{
	if (p->protocol != PROTO_TCP || p->payload || !(p->tcp_flags & (TCP_RST | TCP_ACK)) || (p->tcp_flags & TCP_FIN))
		return 0;
	return !(p->tcp_flags & TCP_SYN) || (e->leg == LEG_DOWNSTREAM && (e->flags & CT_CLIENT));
}

// Whether a packet of a known connection comes from where its leg's packets come from: 0, or the reason to drop it.
static __always_inline int wrong_leg(const struct packet *p, const struct ct_value *e, u32 from, u32 syn)
{
	if (e->leg == LEG_DIRECT && from == FROM_NODE_PROXY)
		return TUPLE_CONFLICT;
	if (e->leg != LEG_DIRECT && from == FROM_ELSEWHERE)
		return NOT_STEERED;
	if (from == FROM_NODE && !(e->leg == LEG_DIRECT ? e->peer_identity == IDENTITY_HOST : is_bare(p, e)))
		return FOREIGN_SOURCE;
	// The proxy opens a connection between the ends of one that the pod itself opened.
	if (syn && from == FROM_NODE_PROXY && (e->flags & CT_CLIENT))
		return TUPLE_CONFLICT;
	return 0;
}

static __always_inline int to_pod_new(struct __sk_buff *skb, struct work *w, const struct endpoint *ep, u32 from)
{
	u32 slot = w->generation & 1, client = 0;
	u16 port = w->p.icmp ? htons(w->p.icmp) : policy_port(&w->key, 0);

	if (w->p.echo_reply)
		return drop(HOOK_TO_POD, w, UNTRACKED);
	decide_ends(&w->key, ep, 0, port, slot, &w->f, &w->d);
	if (from == FROM_NODE_PROXY) {
		if (!is_new_syn(&w->p) && w->d.verdict != REDIRECT) {
			// An evicted entry: the pod is the client of the proxy's connection.
			client = 1;
			decide_ends(&w->key, ep, 1, policy_port(&w->key, 1), slot, &w->f, &w->d);
		}
		w->f.leg = client ? LEG_DOWNSTREAM : LEG_UPSTREAM;
		if (w->d.verdict == ALLOW)
			return drop(HOOK_TO_POD, w, RULE_SET_CHANGED);
	} else {
		if (from == FROM_NODE && w->f.src_identity != IDENTITY_HOST)
			return drop(HOOK_TO_POD, w, FOREIGN_SOURCE);
		// A local pod's packet comes from its own veth, where its source was checked: not from a tunnel, say.
		if (from == FROM_ELSEWHERE && w->f.remote_ifindex && w->f.remote_ifindex != skb->ingress_ifindex)
			return drop(HOOK_TO_POD, w, SPOOFED_SOURCE);
		if (w->d.verdict == REDIRECT)
			return drop(HOOK_TO_POD, w, NOT_STEERED);
	}
	if (w->d.verdict == DENY)
		return drop(HOOK_TO_POD, w, 0);
	if (!w->p.icmp || w->p.outer.sport)
		ct_create(&w->key, client, w->f.leg, w->f.src_identity, w->generation, w->f.length, w->now, &w->d);
	if (from == FROM_NODE_PROXY) {
		if (is_new_syn(&w->p))
			begin_splice(&w->key, ep->netns_cookie, &w->p, LEG_UPSTREAM, w->d.rule_set, w->generation);
		return pass(HOOK_TO_POD, w, FROM_PROXY);
	}
	report(HOOK_TO_POD, &w->f, &w->d);
	return pass(HOOK_TO_POD, w, w->d.reason);
}

int to_pod(struct __sk_buff *skb)
{
	struct work w = {};
	u32 zero = 0, ifindex = skb->ifindex;
	struct config *cfg = config.lookup(&zero);
	struct endpoint *ep = endpoints.lookup(&ifindex);

	begin(skb, &w);
	if (!cfg || !ep)
		return drop(HOOK_TO_POD, &w, NO_ENDPOINT);
	int reason = read_packet(skb, &w);
	u32 from = origin(skb);
	if (!reason && w.p.kind == KIND_NEIGHBOUR)
		return from == FROM_NODE ? pass(HOOK_TO_POD, &w, CONTROL) : drop(HOOK_TO_POD, &w, SPOOFED_SOURCE);
	if (!reason)
		reason = fragment_ports(&w);
	if (!reason && !is_own(ep, &w.p.outer.dst))
		reason = NO_ENDPOINT;
	if (reason)
		return drop(HOOK_TO_POD, &w, reason);
	if (w.p.kind == KIND_ICMP_ERROR) {
		if (!same_addr(&w.p.inner.src, &w.p.outer.dst))
			return drop(HOOK_TO_POD, &w, UNTRACKED);
		return related(skb, HOOK_TO_POD, &w, cfg, ep, 0, SIDE_POD);
	}

	make_key(&w, 0, SIDE_POD);
	struct ct_value *e = conntrack.lookup(&w.key);
	u32 syn = is_new_syn(&w.p);
	u32 fresh = !e || ct_expired(e, w.p.protocol, w.now) || (syn && ct_closing(e));
	if (!fresh) {
		w.f.leg = e->leg;
		w.f.src_identity = e->peer_identity;
		w.f.dst_identity = ep->identity[w.generation & 1];
		w.f.reply = !!(e->flags & CT_CLIENT);
		w.f.revoked = ct_revalidate(&w.key, ep, e, w.generation, &w.f, &w.d);
		// What once went directly and may not any more leaves its ports to the proxy.
		fresh = e->leg == LEG_DIRECT && syn && from == FROM_NODE_PROXY && w.d.verdict == DENY;
	}
	if (fresh)
		return to_pod_new(skb, &w, ep, from);
	reason = wrong_leg(&w.p, e, from, syn);
	if (reason)
		return drop(HOOK_TO_POD, &w, reason);
	// The reset that tells a pod of the end of a proxied connection gets out, whatever the policy says by now.
	if (w.d.verdict == DENY && !(e->leg != LEG_DIRECT && !w.p.payload && (w.p.tcp_flags & TCP_RST)))
		return drop(HOOK_TO_POD, &w, 0);
	ct_touch(e, &w.p, 0, w.f.length, w.now);
	if (syn && e->leg == LEG_UPSTREAM)
		begin_splice(&w.key, ep->netns_cookie, &w.p, e->leg, e->rule_set, w.generation);
	if (e->leg != LEG_DIRECT)
		return pass(HOOK_TO_POD, &w, FROM_PROXY);
	return pass(HOOK_TO_POD, &w, w.f.reply ? REPLY : w.d.reason);
}
