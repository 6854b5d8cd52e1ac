// SPDX-License-Identifier: GPL-2.0-only
// Splicing the sockets between pods and proxy. sockops_pod runs for the pods' cgroup, sockops_proxy for the proxy's, splice_message for
// every message that a member of the sockhash sends.
//
// Deciding once. The SYN's state entry (steer.h) holds one word, and every step is one compare-and-swap on it:
//
//	UNDECIDED --opening end is in--> ACTIVE_IN --accepting end is in--> SPLICED --> TCP_ONLY | REVOKED
//	UNDECIDED | ACTIVE_IN --a byte is sent, or an insertion fails--> TCP_ONLY
//
// Nothing ever leads from TCP_ONLY back, so bytes that went by TCP can't be overtaken by redirected ones. When TCP_ONLY won, both ends
// leave the sockhash before data can have reached them: a member that gets its data by TCP would see FIONREAD as 0.
#include "abi.h"
#include "packet.h"
#include "parse.h"
#include "maps.h"
#include "account.h"
#include "decide.h"

#define TCP_CLOSE 7

// All fields are loaded whatever the family is: loaded in branches they are merged behind a computed pointer, which the verifier
// refuses. A dual-stack socket has ::ffff:a.b.c.d in the IPv6 fields already.
static __always_inline void sock_tuple(struct bpf_sock_ops *s, struct addr *local, struct addr *remote, u16 *local_port,
				       u16 *remote_port)
{
	u32 l4 = s->local_ip4, r4 = s->remote_ip4;
	u32 l0 = s->local_ip6[0], l1 = s->local_ip6[1], l2 = s->local_ip6[2], l3 = s->local_ip6[3];
	u32 r0 = s->remote_ip6[0], r1 = s->remote_ip6[1], r2 = s->remote_ip6[2], r3 = s->remote_ip6[3];
	asm volatile("" : "+r"(l4), "+r"(r4), "+r"(l0), "+r"(l1));
	asm volatile("" : "+r"(l2), "+r"(l3), "+r"(r0), "+r"(r1));
	asm volatile("" : "+r"(r2), "+r"(r3));

	if (s->family == 2) {
		mapped(local, l4);
		mapped(remote, r4);
	} else {
		*local = (struct addr){ { l0, l1, l2, l3 } };
		*remote = (struct addr){ { r0, r1, r2, r3 } };
	}
	*local_port = htons((u16)s->local_port);		// host order in sock_ops
	*remote_port = (u16)(s->remote_port >> 16);		// network order, in the upper half
}

static __always_inline struct splice_state *state_of(const struct splice_key *k)
{
	struct splice_key key = *k;

	key.end = END_POD;
	return splices.lookup(&key);
}

static __always_inline int swap(struct splice_state *st, u64 from, u64 to)
{
	return __sync_val_compare_and_swap(&st->word, from, to) == from;
}

static __always_inline void give_up(struct splice_state *st, u8 why)
{
	if (swap(st, UNDECIDED, TCP_ONLY) || swap(st, ACTIVE_IN, TCP_ONLY)) {
		st->why = why;
		struct splice_counters *t = totals();
		if (t)
			t->tcp_only++;
	}
}

static __always_inline int member(struct bpf_sock_ops *s, const struct splice_key *key, u64 nonce)
{
	struct sock_tag empty = {}, *tag;
	struct splice_key k = *key;

	struct bpf_sock *sk = s->sk;

	if (!sk)
		return -1;
	tag = sock_tags.sk_storage_get(sk, &empty, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag)
		return -1;
	tag->nonce = nonce;
	tag->key = k;
	return socks.sock_hash_update(s, &k, BPF_ANY);
}

static __always_inline void opening_end(struct bpf_sock_ops *s, struct splice_key *key, struct splice_state *st)
{
	if (st->word != UNDECIDED)
		return;
	if (member(s, key, st->nonce)) {
		give_up(st, WHY_MAP);
		return;
	}
	if (!swap(st, UNDECIDED, ACTIVE_IN))
		socks.delete(key);
}

// `why`: it must not be spliced.
static __always_inline void accepting_end(struct bpf_sock_ops *s, struct splice_key *key, struct splice_state *st, u8 why)
{
	struct splice_key other = *key;

	other.end = key->end == END_POD ? END_PROXY : END_POD;
#ifdef TEST_DECIDE_EVERY_TIME
	member(s, key, st->nonce);
	return;
#endif
	if (why)
		give_up(st, why);
	else if (st->word == UNDECIDED)
		give_up(st, WHY_NO_ACTIVE);
	if (st->word != ACTIVE_IN) {
		socks.delete(&other);
		return;
	}
	if (member(s, key, st->nonce)) {
		give_up(st, WHY_MAP);
		socks.delete(&other);
		return;
	}
	if (swap(st, ACTIVE_IN, SPLICED)) {
		struct splice_counters *t = totals();
		if (t)
			t->spliced++;
		return;
	}
	socks.delete(key);
	socks.delete(&other);
}

static __always_inline void established(struct bpf_sock_ops *s, struct splice_key *key, const struct config *cfg)
{
	struct splice_state *st = state_of(key);
	u8 why = 0;

	if (!st)
		return;
	bpf_sock_ops_cb_flags_set(s, BPF_SOCK_OPS_STATE_CB_FLAG);
	if (!(cfg->flags & CONFIG_SPLICE))
		why = WHY_OFF;
	else if (st->leg == LEG_UPSTREAM && !(cfg->flags & CONFIG_SPLICE_SERVERS))
		why = WHY_KERNEL;
	if (s->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		accepting_end(s, key, st, why);
	else if (why)
		give_up(st, why);
	else
		opening_end(s, key, st);
}

// The state entry ends with the connection: what outlives it would meet the next one on these ports.
static __always_inline void closed(struct bpf_sock_ops *s, struct splice_key *key)
{
	struct sock_tag *tag = NULL;
	struct splice_state *st = state_of(key);
	struct bpf_sock *sk = s->sk;

	if (s->args[1] != TCP_CLOSE || !st)
		return;
	if (sk)
		tag = sock_tags.sk_storage_get(sk, 0, 0);
	// A socket without a tag never joined (splicing was off, say). Should it be an older connection's, the new one's first SYN meets
	// no state when it comes again, or a byte of it finds none: by TCP then.
	if (tag && tag->nonce != st->nonce)
		return;		// an older connection's socket
	key->end = END_POD;
	splices.delete(key);
}

static __always_inline void callback(struct bpf_sock_ops *s, struct splice_key *key, const struct config *cfg)
{
	if (s->op == BPF_SOCK_OPS_STATE_CB)
		closed(s, key);
	else
		established(s, key, cfg);
}

static __always_inline int is_ours(u32 op)
{
	return op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_STATE_CB;
}

// A pod's socket. Only `from_pod` and `to_pod` make state entries, with the cookie that the endpoint table gives, so a socket in any other
// network namespace finds nothing, whatever addresses it has.
int sockops_pod(struct bpf_sock_ops *s)
{
	struct splice_key key = { .end = END_POD };
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);

	if (!cfg || !is_ours(s->op) || (s->family != 2 && s->family != 10))
		return 1;
	key.netns_cookie = bpf_get_netns_cookie(s);
	if (key.netns_cookie == cfg->node_cookie)
		return 1;
	sock_tuple(s, &key.pod, &key.peer, &key.pod_port, &key.peer_port);
	callback(s, &key, cfg);
	return 1;
}

// A socket of the proxy: it is marked as such when it starts to listen or to connect; the pod is its remote end.
int sockops_proxy(struct bpf_sock_ops *s)
{
	struct splice_key key = { .end = END_PROXY };
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);

	if (!cfg || bpf_get_netns_cookie(s) != cfg->node_cookie)
		return 1;
	if (s->op == BPF_SOCK_OPS_TCP_LISTEN_CB || s->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		u32 mark = s->op == BPF_SOCK_OPS_TCP_LISTEN_CB ? s->local_port : PROXY_CONNECTED;
		struct bpf_sock *sk = s->sk;
		if (sk)
			proxy_socks.sk_storage_get(sk, &mark, BPF_SK_STORAGE_GET_F_CREATE);
		return 1;
	}
	if (!is_ours(s->op) || (s->family != 2 && s->family != 10))
		return 1;
	struct generation *g = generation.lookup(&zero);
	struct party pod;
	sock_tuple(s, &key.peer, &key.pod, &key.peer_port, &key.pod_port);
	find_party(&key.pod, g ? g->number & 1 : 0, &pod);
	if (!pod.netns_cookie)
		return 1;
	key.netns_cookie = pod.netns_cookie;
	callback(s, &key, cfg);
	return 1;
}

static __always_inline void count_tcp(u32 size)
{
	struct splice_counters *t = totals();

	if (t) {
		t->tcp_bytes += size;
		t->tcp_messages++;
	}
}

// The policy has changed since this connection was judged: judge it again, by the maps alone. Spliced bytes meet no TC hook, so this
// is where a tightened policy reaches them, or shows that it is in audit.
static __always_inline int still_allowed(struct splice_state *st, const struct splice_key *k, u64 number, u32 size)
{
	struct decision d;
	struct flow f = { .protocol = PROTO_TCP, .length = size };
	struct party pod, peer;
	u32 slot = number & 1;

	find_party(&k->pod, slot, &pod);
	find_party(&k->peer, slot, &peer);
	if (st->leg == LEG_DOWNSTREAM)
		decide(&pod, &peer, PROTO_TCP, k->peer_port, slot, &d);
	else
		decide(&peer, &pod, PROTO_TCP, k->pod_port, slot, &d);
	int allowed = d.verdict == REDIRECT && d.rule_set == st->rule_set && pod.netns_cookie == k->netns_cookie;
	if (allowed) {
		u8 before = st->reason;
		st->generation = number;
		st->reason = d.reason;
		if (st->leg == LEG_UPSTREAM || !denies(d.reason) || before == d.reason)
			return 1;
	} else if (d.verdict != DENY) {
		d.verdict = DENY;
		d.reason = RULE_SET_CHANGED;
	}
	f.revoked = !allowed;
	f.leg = st->leg;
	// As client and server, so that the record reads like the connection's first.
	int client_is_pod = st->leg == LEG_DOWNSTREAM;
	f.t.src = client_is_pod ? k->pod : k->peer;
	f.t.dst = client_is_pod ? k->peer : k->pod;
	f.t.sport = client_is_pod ? k->pod_port : k->peer_port;
	f.t.dport = client_is_pod ? k->peer_port : k->pod_port;
	f.src_identity = client_is_pod ? pod.identity : peer.identity;
	f.dst_identity = client_is_pod ? peer.identity : pod.identity;
	count(HOOK_SK_MSG, d.verdict, d.reason, size);
	report(HOOK_SK_MSG, &f, &d);
	return allowed;
}

int splice_message(struct sk_msg_md *msg)
{
	u32 zero = 0, size = msg->size;
	struct bpf_sock *sk = msg->sk;
	struct sock_tag *tag = sk ? sock_tags.sk_storage_get(sk, 0, 0) : NULL;
	struct generation *g = generation.lookup(&zero);

	if (!tag || !g)
		return SK_PASS;
	struct splice_state *st = state_of(&tag->key);
	// No entry: the connection has ended, or made room for others. By TCP then, where from_pod judges it.
	if (!st || st->nonce != tag->nonce) {
		count_tcp(size);
		return SK_PASS;
	}
	if (st->word == REVOKED)
		return SK_DROP;
	if (st->generation != g->number && !still_allowed(st, &tag->key, g->number, size)) {
		struct splice_counters *t = totals();
		if (t && st->word != REVOKED)
			t->revoked++;
		st->word = REVOKED;
		return SK_DROP;
	}
#ifndef TEST_DECIDE_EVERY_TIME
	if (st->word != SPLICED)
		give_up(st, WHY_SENT_FIRST);
	if (st->word != SPLICED) {
		count_tcp(size);
		return SK_PASS;
	}
#endif
	struct splice_key peer = tag->key;
	u32 end = peer.end & 1;
	peer.end = !end;
	if (socks.msg_redirect_hash(msg, &peer, BPF_F_INGRESS) != SK_PASS) {
#ifndef TEST_DECIDE_EVERY_TIME
		if (swap(st, SPLICED, TCP_ONLY))
			st->why = WHY_PEER_GONE;
#endif
		count_tcp(size);
		return SK_PASS;
	}
	__sync_fetch_and_add(&st->bytes[end], size);
	__sync_fetch_and_add(&st->messages[end], 1);
	struct splice_counters *t = totals();
	if (t) {
		t->redirected_bytes += size;
		t->redirected_messages++;
	}
	return SK_PASS;
}
