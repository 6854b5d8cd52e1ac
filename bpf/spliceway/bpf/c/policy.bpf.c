// SPDX-License-Identifier: GPL-2.0-only
// L3/L4 policy and steering. from_pod: clsact ingress on the host side of each endpoint's veth. to_pod: clsact egress there, the
// last line of defence. from_network: clsact ingress on the uplinks. guard: sk_lookup in the node's network namespace.
#include "abi.h"
#include "packet.h"
#include "parse.h"
#include "maps.h"
#include "account.h"
#include "decide.h"
#include "conntrack.h"
#include "steer.h"

#define PASS (-1)	// TC_ACT_UNSPEC: other programs on the device (a CNI's) still run
#define DROP 2		// TC_ACT_SHOT

struct work {
	struct packet p;
	struct ct_key key;
	struct flow f;
	struct decision d;
	u64 generation;
	u64 now;
};

static __always_inline int drop(u32 hook, struct work *w, u32 reason)
{
	if (reason) {
		w->d.verdict = DENY;
		w->d.reason = reason;
	}
	count(hook, DENY, w->d.reason, w->f.length);
	report(hook, &w->f, &w->d);
	return DROP;
}

static __always_inline int pass(u32 hook, struct work *w, u32 reason)
{
	count(hook, ALLOW, reason, w->f.length);
	return PASS;
}

static __always_inline void begin(struct __sk_buff *skb, struct work *w)
{
	u32 zero = 0;
	struct generation *g = generation.lookup(&zero);

	w->generation = g ? g->number : 0;
	w->now = bpf_ktime_get_ns();
	w->f.length = skb->len;
}

static __always_inline void describe(struct work *w)
{
	w->f.t = w->p.outer;
	w->f.protocol = w->p.protocol;
}

// Conntrack key with `local` = source (out) or destination of the packet.
static __always_inline void make_key(struct work *w, u32 out, u8 side)
{
	struct tuple *t = &w->p.outer;

	w->key.local = out ? t->src : t->dst;
	w->key.remote = out ? t->dst : t->src;
	w->key.local_port = out ? t->sport : t->dport;
	w->key.remote_port = out ? t->dport : t->sport;
	w->key.protocol = w->p.protocol;
	w->key.side = side;
}

// Key of the connection that an ICMP error is about. `out`: the error leaves the local end, so the quoted packet came in.
static __always_inline void make_quoted_key(struct work *w, u32 out, u8 side)
{
	struct tuple *t = &w->p.inner;

	w->key.local = out ? t->dst : t->src;
	w->key.remote = out ? t->src : t->dst;
	w->key.local_port = out ? t->dport : t->sport;
	w->key.remote_port = out ? t->sport : t->dport;
	w->key.protocol = w->p.inner_protocol;
	w->key.side = side;
}

static __always_inline int is_own(const struct endpoint *ep, const struct addr *a)
{
	return !is_unspecified(a) && (same_addr(a, &ep->v4) || same_addr(a, &ep->v6));
}

// Ports of a later fragment are those of its first one.
static __always_inline int fragment_ports(struct work *w)
{
	struct fragment_key k = { .id = w->p.fragment_id, .protocol = w->p.protocol };
	struct fragment_value v = {}, *found;

	if (!w->p.first_fragment && !w->p.later_fragment)
		return 0;
	k.src = w->p.outer.src;
	k.dst = w->p.outer.dst;
	if (w->p.first_fragment) {
		v.sport = w->p.outer.sport;
		v.dport = w->p.outer.dport;
		fragments.update(&k, &v);
		return 0;
	}
	found = fragments.lookup(&k);
	if (!found)
		return FRAGMENT;
	w->p.outer.sport = found->sport;
	w->p.outer.dport = found->dport;
	return 0;
}

// The link's own business: ARP and neighbour discovery for the endpoint's own addresses, no router advertisements or redirects.
static __always_inline int neighbour_reason(const struct endpoint *ep, const struct packet *p)
{
	if (p->neighbour_type == 134 || p->neighbour_type == 137)
		return SPOOFED_SOURCE;
	// It stays on its link: a router forwards these like any other packet, past the policy.
	if (p->neighbour_type && !is_link_local(&p->outer.dst) && !is_link_multicast(&p->outer.dst))
		return MALFORMED;
	if (is_own(ep, &p->outer.src) || (p->neighbour_type ? is_link_local(&p->outer.src) || is_unspecified(&p->outer.src)
						       : p->outer.src.w[3] == 0))
		return 0;
	return SPOOFED_SOURCE;
}

static __always_inline int source_reason(const struct endpoint *ep, const struct packet *p)
{
	if (p->kind == KIND_NEIGHBOUR)
		return neighbour_reason(ep, p);
	if (!is_own(ep, &p->outer.src))
		return SPOOFED_SOURCE;
	// An error that a pod sends is about a packet that it got, and goes to whoever sent that.
	if (p->kind == KIND_ICMP_ERROR && (!is_own(ep, &p->inner.dst) || !same_addr(&p->inner.src, &p->outer.dst)))
		return SPOOFED_SOURCE;
	return 0;
}

// An ICMP error about a known connection follows it; a proxy's socket gets it by the mark.
static __always_inline int related(struct __sk_buff *skb, u32 hook, struct work *w, const struct config *cfg,
				   const struct endpoint *ep, u32 out, u8 side)
{
	make_quoted_key(w, out, side);
	struct ct_value *e = conntrack.lookup(&w->key);
	if (!e || ct_expired(e, w->key.protocol, w->now))
		return drop(hook, w, UNTRACKED);
	ct_revalidate(&w->key, ep, e, w->generation, &w->f, &w->d);
	if (w->d.verdict == DENY)
		return drop(hook, w, 0);
	if (hook != HOOK_TO_POD && e->leg != LEG_DIRECT)
		skb->mark = (skb->mark & ~cfg->mark_mask) | cfg->mark;
	return pass(hook, w, RELATED);
}

// A connection that this hook has not seen, or not since its entry went.
static __always_inline int from_pod_new(struct __sk_buff *skb, struct work *w, const struct config *cfg, const struct endpoint *ep)
{
	u32 slot = w->generation & 1, client = 1;
	u16 port = w->p.icmp ? htons(w->p.icmp) : policy_port(&w->key, 1);

	if (w->p.echo_reply)
		return drop(HOOK_FROM_POD, w, UNTRACKED);
	if (w->p.protocol == PROTO_TCP && !is_new_syn(&w->p) && proxy_has(skb, &w->p)) {
		// An evicted entry: the pod is the server of a connection of the proxy's, or its client.
		decide_ends(&w->key, ep, 0, policy_port(&w->key, 0), slot, &w->f, &w->d);
		client = w->d.verdict != REDIRECT;
	}
	if (client)
		decide_ends(&w->key, ep, 1, port, slot, &w->f, &w->d);
	w->f.leg = w->d.verdict != REDIRECT ? LEG_DIRECT : client ? LEG_DOWNSTREAM : LEG_UPSTREAM;
	if (w->d.verdict == DENY)
		return drop(HOOK_FROM_POD, w, 0);
	if (w->d.verdict == REDIRECT && w->p.protocol != PROTO_TCP)
		return drop(HOOK_FROM_POD, w, NOT_STEERED);
	if (!w->p.icmp || w->p.outer.sport)
		ct_create(&w->key, client, w->f.leg, w->f.dst_identity, w->generation, w->f.length, w->now, &w->d);
	if (w->d.verdict == ALLOW) {
		report(HOOK_FROM_POD, &w->f, &w->d);
		return pass(HOOK_FROM_POD, w, w->d.reason);
	}
	if (is_new_syn(&w->p))
		begin_splice(&w->key, ep->netns_cookie, &w->p, w->f.leg, w->d.rule_set, w->generation);
	int reason = steer(skb, &w->p, cfg, w->d.rule_set, w->f.leg);
	if (reason)
		return drop(HOOK_FROM_POD, w, reason);
	report(HOOK_FROM_POD, &w->f, &w->d);
	count(HOOK_FROM_POD, REDIRECT, w->d.reason, w->f.length);
	return PASS;
}

int from_pod(struct __sk_buff *skb)
{
	struct work w = {};
	u32 zero = 0, ifindex = skb->ifindex;
	struct config *cfg = config.lookup(&zero);
	struct endpoint *ep = endpoints.lookup(&ifindex);

	begin(skb, &w);
	if (!cfg || !ep)
		return drop(HOOK_FROM_POD, &w, NO_ENDPOINT);
	int reason = parse_packet(skb, &w.p);
	describe(&w);
	w.f.src_identity = ep->identity[w.generation & 1];
	if (!reason)
		reason = source_reason(ep, &w.p);
	if (!reason)
		reason = fragment_ports(&w);
	if (reason)
		return drop(HOOK_FROM_POD, &w, reason);
	if (w.p.kind == KIND_NEIGHBOUR)
		return pass(HOOK_FROM_POD, &w, CONTROL);
	if (w.p.kind == KIND_ICMP_ERROR)
		return related(skb, HOOK_FROM_POD, &w, cfg, ep, 1, SIDE_POD);

	make_key(&w, 1, SIDE_POD);
	struct ct_value *e = conntrack.lookup(&w.key);
	u32 syn = is_new_syn(&w.p);
	if (!e || ct_expired(e, w.p.protocol, w.now) || (syn && (ct_closing(e) || !(e->flags & CT_CLIENT))))
		return from_pod_new(skb, &w, cfg, ep);
	w.f.leg = e->leg;
	w.f.dst_identity = e->peer_identity;
	w.f.reply = !(e->flags & CT_CLIENT);
	w.f.revoked = ct_revalidate(&w.key, ep, e, w.generation, &w.f, &w.d);
	if (w.d.verdict == DENY)
		return drop(HOOK_FROM_POD, &w, 0);
	ct_touch(e, &w.p, 1, w.f.length, w.now);
	if (e->leg == LEG_DIRECT)
		return pass(HOOK_FROM_POD, &w, w.f.reply ? REPLY : w.d.reason);
	if (syn)
		begin_splice(&w.key, ep->netns_cookie, &w.p, e->leg, e->rule_set, w.generation);
	reason = steer(skb, &w.p, cfg, e->rule_set, e->leg);
	if (reason)
		return drop(HOOK_FROM_POD, &w, reason);
	count(HOOK_FROM_POD, REDIRECT, w.f.reply ? REPLY : w.d.reason, w.f.length);
	return PASS;
}

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
	int reason = parse_packet(skb, &w.p);
	describe(&w);
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
	if (!e || ct_expired(e, w.p.protocol, w.now) || (syn && ct_closing(e)))
		return to_pod_new(skb, &w, ep, from);
	w.f.leg = e->leg;
	w.f.src_identity = e->peer_identity;
	w.f.dst_identity = ep->identity[w.generation & 1];
	w.f.reply = !!(e->flags & CT_CLIENT);
	if (e->leg == LEG_DIRECT ? from == FROM_NODE_PROXY : from == FROM_ELSEWHERE)
		return drop(HOOK_TO_POD, &w, e->leg == LEG_DIRECT ? TUPLE_CONFLICT : NOT_STEERED);
	if (from == FROM_NODE && !(e->leg == LEG_DIRECT ? e->peer_identity == IDENTITY_HOST : is_bare(&w.p, e)))
		return drop(HOOK_TO_POD, &w, FOREIGN_SOURCE);
	// The proxy opens a connection between the ends of one that the pod itself opened.
	if (syn && from == FROM_NODE_PROXY && (e->flags & CT_CLIENT))
		return drop(HOOK_TO_POD, &w, TUPLE_CONFLICT);
	w.f.revoked = ct_revalidate(&w.key, ep, e, w.generation, &w.f, &w.d);
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

// From outside to a local endpoint. What needs no proxy is left to `to_pod`.
int from_network(struct __sk_buff *skb)
{
	struct work w = {};
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);
	struct party src, dst;

	begin(skb, &w);
	if (!cfg)
		return PASS;
	int reason = parse_packet(skb, &w.p);
	describe(&w);
	if (reason == UNSUPPORTED_PROTOCOL || w.p.kind == KIND_NEIGHBOUR)
		return PASS;	// the link's business; it reaches no endpoint by routing
	u32 slot = w.generation & 1;
	find_party(&w.p.outer.dst, slot, &dst);
	find_party(&w.p.outer.src, slot, &src);
	w.f.src_identity = src.identity;
	w.f.dst_identity = dst.identity;
	if (src.netns_cookie || src.identity == IDENTITY_HOST)
		return drop(HOOK_FROM_NETWORK, &w, SPOOFED_SOURCE);
	if (!dst.netns_cookie)
		return PASS;
	if (reason)
		return drop(HOOK_FROM_NETWORK, &w, reason);
	if (w.p.kind == KIND_ICMP_ERROR) {
		make_quoted_key(&w, 1, SIDE_NETWORK);
		if (!conntrack.lookup(&w.key))
			return PASS;
		return related(skb, HOOK_FROM_NETWORK, &w, cfg, NULL, 1, SIDE_NETWORK);
	}
	if (w.p.protocol != PROTO_TCP)
		return PASS;
	if (fragment_ports(&w))
		return drop(HOOK_FROM_NETWORK, &w, FRAGMENT);
	make_key(&w, 1, SIDE_NETWORK);
	struct ct_value *e = conntrack.lookup(&w.key);
	u32 syn = is_new_syn(&w.p);
	if (!e || ct_expired(e, PROTO_TCP, w.now) || (syn && ct_closing(e))) {
		if (!syn && !proxy_has(skb, &w.p))
			return PASS;
		decide_ends(&w.key, NULL, 1, w.key.remote_port, slot, &w.f, &w.d);
		if (w.d.verdict != REDIRECT)
			return PASS;
		w.f.leg = LEG_DOWNSTREAM;
		ct_create(&w.key, 1, LEG_DOWNSTREAM, w.f.dst_identity, w.generation, w.f.length, w.now, &w.d);
		report(HOOK_FROM_NETWORK, &w.f, &w.d);
	} else {
		w.f.leg = e->leg;
		w.f.revoked = ct_revalidate(&w.key, NULL, e, w.generation, &w.f, &w.d);
		if (w.d.verdict == DENY)
			return drop(HOOK_FROM_NETWORK, &w, 0);
		ct_touch(e, &w.p, 1, w.f.length, w.now);
		e->flags |= CT_REPLIED;		// the proxy's answers leave by a device without a hook
	}
	reason = steer(skb, &w.p, cfg, w.d.rule_set, LEG_DOWNSTREAM);
	if (reason)
		return drop(HOOK_FROM_NETWORK, &w, reason);
	count(HOOK_FROM_NETWORK, REDIRECT, w.d.reason, w.f.length);
	return PASS;
}

// Runs when a packet for the node finds no connection and looks for a listener. Steered packets carry their socket and never come
// here, so whatever arrives at a listener's port dialled it directly.
int guard(struct bpf_sk_lookup *ctx)
{
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);

	if (!cfg || ctx->protocol != PROTO_TCP || !ctx->remote_port)
		return SK_PASS;
	if (ctx->local_port < cfg->first_port || ctx->local_port > cfg->last_port)
		return SK_PASS;
	count(HOOK_SK_LOOKUP, DENY, NOT_FOR_LISTENERS, 0);
	return SK_DROP;
}
