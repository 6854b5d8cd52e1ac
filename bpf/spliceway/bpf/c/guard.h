// SPDX-License-Identifier: GPL-2.0-only
// sk_lookup in the node's network namespace: runs when a packet for the node finds no connection and looks for a listener.
#pragma once

#define FAMILY_INET 2

// Our lookup of a listener (steer.h) asks as «from nowhere», which no packet can be.
static __always_inline int is_own_lookup(struct bpf_sk_lookup *ctx)
{
	return !(ctx->remote_port | ctx->remote_ip4 | ctx->remote_ip6[0] | ctx->remote_ip6[1] | ctx->remote_ip6[2] |
		 ctx->remote_ip6[3]);
}

// The conntrack key in the perspective of who has sent the packet.
static __always_inline void dialled_key(struct bpf_sk_lookup *ctx, struct ct_key *key)
{
	// All of it is read, and before it is asked for: the verifier knows constant offsets only.
	volatile struct bpf_sk_lookup *v = ctx;
	u32 r4 = v->remote_ip4, r0 = v->remote_ip6[0], r1 = v->remote_ip6[1], r2 = v->remote_ip6[2], r3 = v->remote_ip6[3];
	u32 l4 = v->local_ip4, l0 = v->local_ip6[0], l1 = v->local_ip6[1], l2 = v->local_ip6[2], l3 = v->local_ip6[3];

	if (ctx->family == FAMILY_INET) {
		mapped(&key->local, r4);
		mapped(&key->remote, l4);
	} else {
		key->local = (struct addr){ { r0, r1, r2, r3 } };
		key->remote = (struct addr){ { l0, l1, l2, l3 } };
	}
	key->local_port = (u16)ctx->remote_port;
	key->remote_port = htons(ctx->local_port);
	key->protocol = ctx->protocol;
	key->side = SIDE_POD;
}

static __always_inline int is_looking(void)
{
	u32 zero = 0, *ours = looking.lookup(&zero);

	return ours && *ours;
}

// What was allowed once is asked again when policy has changed, and recorded once. `server`: as it is judged here; to_network judges an address that
// leaves the node.
static __always_inline int is_allowed_still(struct work *w, u32 server, u32 *known)
{
	w->key.side = SIDE_TRANSLATED;
	struct ct_value *e = conntrack.lookup(&w->key);
	*known = e && e->peer_identity == server && !ct_expired(e, w->key.protocol, w->now);
	if (!*known || e->judged != (w->generation << 2 | ALLOW))
		return 0;
	e->seen = w->now;
	e->flags |= CT_REPLIED;
	return 1;
}

// A pod's connection to a process of the node that from_pod has seen with another destination, since netfilter translated it in between (a Service
// whose backend is on the node), or not judged, or not at all.
static __always_inline int judge_dialled(struct bpf_sk_lookup *ctx, const struct config *cfg)
{
	struct work *w = take_work(HOOK_SK_LOOKUP);
	struct party client, server;

	if (!w)
		return SK_DROP;
	if (cfg->flags & CONFIG_DISABLED)
		return SK_PASS;
	w->mode = cfg->flags;
	w->now = bpf_ktime_get_ns();
	dialled_key(ctx, &w->key);
	u32 zero = 0;
	struct generation *g = generation.lookup(&zero);
	w->generation = g ? g->number : 0;
	u32 slot = w->generation & 1, known;
	find_party(&w->key.local, slot, &client);
	if (!client.netns_cookie || is_looking())
		return SK_PASS;
	find_party(&w->key.remote, slot, &server);
	// By whatever address: a Service's may be the node's own (kube-ipvs0).
	u32 tunnel = is_tunnel_port(w->key.protocol, w->key.remote_port);
	struct ct_value *e = conntrack.lookup(&w->key);
	if (e && !is_deferred(e) && !ct_expired(e, w->key.protocol, w->now) && (!tunnel || !(e->flags & CT_CLIENT)))
		return SK_PASS;
	if (is_outside(server.identity))
		server.identity = IDENTITY_HOST;
	if (!tunnel && !is_nodes(server.identity, server.ifindex))
		return SK_PASS;
	w->f.t = (struct tuple){ .src = w->key.local, .dst = w->key.remote, .sport = w->key.local_port, .dport = w->key.remote_port };
	w->f.protocol = w->key.protocol;
	w->f.src_identity = client.identity;
	w->f.dst_identity = server.identity;
	if (is_allowed_still(w, server.identity, &known) && !tunnel)
		return SK_PASS;
	decide(&client, &server, w->key.protocol, w->key.remote_port, slot, &w->d);
	if (tunnel) {
		w->d.verdict = DENY;
		w->d.reason = TUNNEL;
	}
	// What the proxy sends in a pod's name looks the same, but comes by no pod's device. It may look like coming by a bridge, since for local packets
	// the device is that which has the address: so there the pod's SYN passes, and to_pod drops the answer (wrong_server).
	u32 ifindex = ctx->ingress_ifindex;
	if (only_audited(&w->d))
		pass_by(&w->d);
	if (w->d.verdict == ALLOW) {
		ct_create(&w->key, &w->p, 1, server.identity, w->generation, w->now, &w->f, &w->d);
		if (!known && (client.enforce & ENFORCE_EGRESS))	// else from_pod has
			report(HOOK_SK_LOOKUP, &w->f, &w->d);
		return SK_PASS;
	}
	if (w->d.verdict == REDIRECT && !endpoints.lookup(&ifindex))
		return SK_PASS;
	return drop(HOOK_SK_LOOKUP, w, w->d.verdict == REDIRECT ? NOT_STEERED : 0) == PASS ? SK_PASS : SK_DROP;
}

// Steered packets carry their socket and never come here, so whatever arrives at a listener's port dialled it directly.
int guard(struct bpf_sk_lookup *ctx)
{
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);

	if (!cfg || is_own_lookup(ctx))
		return SK_PASS;
	if (ctx->protocol != PROTO_TCP)
		return judge_dialled(ctx, cfg);
	// What is steered carries its socket. But a proxy's socket in TIME_WAIT hands a new SYN to whoever listens on the port (TCP_TW_SYN in
	// tcp_v4_rcv): a wildcard listener of the node, say. When nobody is found, the kernel acknowledges, the client resets the old socket,
	// and its SYN comes again, to the proxy.
	if (ctx->ingress_ifindex == cfg->delivery)
		return SK_DROP;
	if (ctx->local_port < cfg->first_port || ctx->local_port > cfg->last_port)
		return judge_dialled(ctx, cfg);
	count(HOOK_SK_LOOKUP, DENY, NOT_FOR_LISTENERS, 0);
	return SK_DROP;
}
