// SPDX-License-Identifier: GPL-2.0-only
// Splicing the sockets between pods and proxy. sockops_pod runs for the pods' cgroup, sockops_proxy for the proxy's, splice_message for
// every message that a member of the sockhash sends.
//
// Deciding once. The SYN's state entry (steer.h) holds one word, and every step is one compare-and-swap on it:
//
//	UNDECIDED --opening end is in--> ACTIVE_IN --accepting end is in--> SPLICED --> TCP_ONLY | REVOKED
//	UNDECIDED | ACTIVE_IN --a byte is sent, or an insertion fails--> TCP_ONLY
//
// Nothing ever leads from TCP_ONLY back, so bytes that went by TCP can't be overtaken by redirected ones. When TCP_ONLY won at once, both
// ends leave the sockhash before data can have reached them. What becomes TCP_ONLY later leaves as leave.h says: a reader that is too
// far behind, a stream of small messages (TCP gathers them, a redirect wakes the reader for each), a pod that shuts down its sending side.
#include "abi.h"
#include "packet.h"
#include "parse.h"
#include "maps.h"
#include "account.h"
#include "decide.h"
#include "judge.h"
#include "measure.h"
#include "leave.h"
#include "join.h"
#include "ends.h"
#include "room.h"
#include "sidecar.h"
#include "destination.h"

#define TCP_ESTABLISHED 1
#define TCP_ULP 31
#define SOL_SOCKET 1
#define SO_MARK 36

#include "untracked.h"

#define SENT_AGAIN 3		// times: 0.3 s
// A proxy that waits for room is not told of less.
#define LEAST_ROOM 65536

int release_pod(struct bpf_sock *sk)
{
	return released(sk);
}

int release_proxy(struct bpf_sock *sk)
{
	return released(sk);
}

// The proxy's kernel sends again. What was sent after a connection had left is held back, and Envoy does not wait for room: it gives up what it can't
// hand over for a second when it wants to close. So the kernel takes it, as long as such buffers of the pod and of the node stay within their
// budgets, beside what is unread.
static __always_inline void sends_again(struct bpf_sock_ops *s, struct splice_key *key, const struct config *cfg)
{
	u64 pod = key->netns_cookie | HELD_SUMS;
	struct splice_state *st = state_of(key);
	u32 bytes = HELD_BACK;

	// Towards servers the first times come within milliseconds: that is no pod that is behind yet.
	if (st && st->leg == LEG_UPSTREAM && s->args[0] < SENT_AGAIN)
		return;
	if (key->end != END_PROXY || !st || st->word != TCP_ONLY || !st->pod_in || st->asks || st->held ||
	    sum_of(pod) + HELD_BACK > (s64)cfg->unread_endpoint || sum_of(HELD_SUMS) + HELD_BACK > (s64)cfg->unread_node ||
	    bpf_setsockopt(s, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)))
		return;
	st->held = HELD_BACK;
	add_to_sum(pod, HELD_BACK);
	add_to_sum(HELD_SUMS, HELD_BACK);
}

static __always_inline void callback(struct bpf_sock_ops *s, struct splice_key *key, const struct config *cfg)
{
	if (s->op == BPF_SOCK_OPS_STATE_CB)
		closed(s, key);
	else if (s->op == BPF_SOCK_OPS_RTO_CB)
		sends_again(s, key, cfg);
	else
		established(s, key, cfg);
}

static __always_inline int is_ours(u32 op)
{
	return op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || op == BPF_SOCK_OPS_STATE_CB ||
	       op == BPF_SOCK_OPS_RTO_CB;
}

// A pod's socket. Only `from_pod` and `to_pod` make state entries, with the cookie that the endpoint table gives, so a socket in any other
// network namespace finds nothing, whatever addresses it has.
int sockops_pod(struct bpf_sock_ops *s)
{
	struct splice_key key = { .end = END_POD };
	u32 zero = 0;
	struct config *cfg = config.lookup(&zero);

	if (!cfg || (!is_ours(s->op) && s->op != BPF_SOCK_OPS_TCP_CONNECT_CB) || (s->family != 2 && s->family != 10))
		return 1;
	u64 cookie = bpf_get_netns_cookie(s);
	if (cookie == cfg->node_cookie)
		return 1;
	if (s->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		struct bpf_sock *sk = s->sk;
		if (sk) {
			dials_again(sk);
			dials_beside_sidecar(sk, cookie);
		}
		return 1;
	}
	if (is_sidecar_leg(s, cookie, &key)) {
		callback(s, &key, cfg);
		return 1;
	}
	key.end = END_POD;
	key.netns_cookie = cookie;
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
		// What it accepts inherits the mark, by which rules of the node tell the proxy's packets (netfilter.py).
		u32 packets = cfg->proxy_mark;
		if (s->op == BPF_SOCK_OPS_TCP_LISTEN_CB && packets)
			bpf_setsockopt(s, SOL_SOCKET, SO_MARK, &packets, sizeof(packets));
		struct generation *now = generation.lookup(&zero);
		struct party to;
		// Before the handshake, whose round trip is the only one that is measured while it is spliced. A listener has other clients than pods.
		if (s->op == BPF_SOCK_OPS_TCP_CONNECT_CB && (s->family == 2 || s->family == 10)) {
			sock_tuple(s, &key.peer, &key.pod, &key.peer_port, &key.pod_port);
			find_party(&key.pod, now ? now->number & 1 : 0, &to);
			if (to.netns_cookie)
				send_again_soon(s, END_PROXY);
		}
		if (sk)
			proxy_socks.sk_storage_get(sk, &mark, BPF_SK_STORAGE_GET_F_CREATE);
		return 1;
	}
	if (s->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB && (s->family == 2 || s->family == 10))
		leave_untracked(s);
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
	struct party pod, peer;

	int allowed = may_go_on(k, st->leg, st->rule_set, st->port, number & 1, &pod, &peer, &d);
	if (allowed) {
		u8 before = st->reason;
		st->generation = number;
		st->reason = d.reason;
		if (st->leg == LEG_UPSTREAM || !denies(d.reason) || before == d.reason)
			return 1;
	}
	if (!allowed) {
		struct splice_counters *t = totals();
		if (!revoke(st))
			return 0;
		if (t)
			t->revoked++;
	}
	tell(k, st->leg, &pod, &peer, &d, allowed, size, 0);
	return allowed;
}

int splice_message(struct sk_msg_md *msg)
{
	u32 zero = 0, size = msg->size;
	struct bpf_sock *sk = msg->sk;
	struct sock_tag *tag = sk ? sock_tags.sk_storage_get(sk, 0, 0) : NULL;
	struct generation *g = generation.lookup(&zero);
	struct config *cfg = config.lookup(&zero);

	if (!tag || !g || !cfg)
		return SK_PASS;
	struct splice_state *st = state_of(&tag->key);
	// No entry: the connection has ended, or made room for others. By TCP then, where from_pod judges it.
	if (!st || st->nonce != tag->nonce) {
		count_tcp(size);
		return SK_PASS;
	}
	// The kill switch leaves nothing noted: when it is off, the next message is judged. What a pod says to itself no policy judges.
	u32 asks = st->generation != g->number && !(cfg->flags & CONFIG_DISABLED) && st->leg != LEG_SIDECAR;
	if (st->word == REVOKED || (asks && !still_allowed(st, &tag->key, g->number, size)))
		return SK_DROP;
	struct splice_counters *t = totals();
	struct splice_key peer = tag->key;
	u32 end = peer.end & 1;
	peer.end = !end;
#ifndef TEST_DECIDE_EVERY_TIME
	if (st->word != SPLICED)
		give_up(st, WHY_SENT_FIRST);
	if (!is_word(st, SPLICED)) {
		count_tcp(size);
		return SK_PASS;
	}
	u8 why = too_much(st, end, peer.netns_cookie, size, cfg);
	if (why) {
		if (swap(st, SPLICED, TCP_ONLY))
			count_why(st, why);
		count_tcp(size);
		return SK_PASS;
	}
#endif
	if (socks.msg_redirect_hash(msg, &peer, BPF_F_INGRESS) != SK_PASS) {
#ifndef TEST_DECIDE_EVERY_TIME
		if (swap(st, SPLICED, TCP_ONLY))
			count_why(st, WHY_PEER_GONE);
#endif
		count_tcp(size);
		return SK_PASS;
	}
	__sync_fetch_and_add(&st->way[end].bytes, size);
	__sync_fetch_and_add(&st->way[end].messages, 1);
	if (t) {
		t->redirected_bytes += size;
		t->redirected_messages++;
	}
	return SK_PASS;
}

// getsockopt() in the proxy's cgroup: how many bytes may this spliced socket send before it has to leave? A message can't be refused for a
// while: the kernel keeps the verdict SK_DROP (psock->eval) for all that is sent later. So a proxy that asks can wait, and stay spliced.
int splice_room(struct bpf_sockopt *ctx)
{
#ifdef MEASURED
	u32 zero = 0, *answer = ctx->optval;
	struct bpf_sock *sk = ctx->sk;
	struct config *cfg = config.lookup(&zero);

	if (ctx->level != SOCKOPT_LEVEL || ctx->optname != SOCKOPT_ROOM || !sk || !cfg || (void *)(answer + 1) > ctx->optval_end)
		return 1;
	struct sock_tag *tag = sock_tags.sk_storage_get(sk, 0, 0);
	struct splice_state *st = tag ? state_of(&tag->key) : NULL;
	if (!st || st->nonce != tag->nonce || st->word != SPLICED)
		return 1;
	u32 end = tag->key.end & 1, stuck = is_stuck(st);
	st->asks = 1;
	s64 waiting = unread_by(&st->sock[!end]);
	if (waiting < 0)
		return 1;
	struct splice_way *way = &st->way[end];
	u64 cost = waiting + messages_waiting(way, waiting) * MESSAGE_COST;
	way->unread = waiting;
	charge(st, end, tag->key.netns_cookie, cost);
	s64 room = most_unread_by(&st->sock[!end], cfg) - waiting;
	s64 of_connection = (s64)cfg->unread_connection - (s64)(cost + MESSAGE_COST);
	s64 of_endpoint = (s64)cfg->unread_endpoint - sum_of(tag->key.netns_cookie);
	s64 of_node = (s64)cfg->unread_node - sum_of(0);
	if (of_connection < room)
		room = of_connection;
	if (of_endpoint < room)
		room = of_endpoint;
	if (of_node < room)
		room = of_node;
	if (room < LEAST_ROOM || stuck)
		room = 0;
	// What others hold back may stay for ever: who has nothing of its own to wait for goes on, and leaves.
	if (!room && cost <= UNREAD_FLOOR && !stuck)
		return 1;
	*answer = room;
	ctx->optlen = sizeof(*answer);
	asm volatile("" ::: "memory");		// one store for both the verifier refuses
	ctx->retval = 0;
#endif
	return 1;
}

// getsockopt() in the proxy's cgroup: the original destination of what it has accepted.
int proxy_destination(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (ctx->optname != SO_ORIGINAL_DST || !sk)
		return 1;
	u32 *mark = proxy_socks.sk_storage_get(sk, 0, 0);
	if (!mark || *mark == PROXY_CONNECTED)
		return 1;
	u32 length = tell_destination(ctx, sk);
	if (!length)
		return 1;
	ctx->optlen = length;
	asm volatile("" ::: "memory");		// one store for both the verifier refuses
	ctx->retval = 0;
	return 1;
}

// setsockopt() in the pods' cgroup. Kernel TLS on a member of a sockhash frees what is still in use (CVE-2026-93824), and any pod can ask for it on its
// own socket. Behind HTTP rules there is no TLS to speed up; libraries go on without.
int guard_ulp(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (ctx->level != PROTO_TCP || ctx->optname != TCP_ULP || !sk)
		return 1;
	// Whether it becomes a member is settled, under the lock that is held here, when it is established. Before that it could become one
	// between this answer and the setting; no kernel takes "tls" before.
	if (sk->state != TCP_ESTABLISHED)
		return 0;
	struct sock_tag *tag = sock_tags.sk_storage_get(sk, 0, 0);
	struct splice_state *st = tag ? state_of(&tag->key) : NULL;
#ifdef MEASURED
	// It has left, but a sendmsg() that began before still holds what kernel TLS would free.
	if (st && has_psock(&st->sock[END_POD]))
		return 0;
#endif
	return !tag || (st && st->nonce == tag->nonce && !st->pod_in);
}

#ifdef MEASURED
// Does a pod wait for what was held back, while nobody is there any more who would send it again?
static __always_inline int is_forsaken(const struct splice_state *st)
{
	const struct splice_end *pod = &st->sock[END_POD];
	u32 awaited = 0;

	return st->has_hole && !is_still(&st->sock[END_PROXY]) &&
	       !bpf_probe_read_kernel(&awaited, sizeof(awaited), (void *)(pod->address + SOCK_AWAITED)) && is_still(pod) &&
	       (s32)(st->hole - awaited) > 0 && !pod_is_behind(st);
}
#endif

// For user space, by BPF_PROG_TEST_RUN: looks at both ends of the connection whose key stands behind an Ethernet header. Returns FORSAKEN when
// its pod has to be told of the end.
int measure_splice(struct __sk_buff *skb)
{
	struct splice_key key = {};

	if (bpf_skb_load_bytes(skb, ETH_HEADER, &key, sizeof(key)))
		return 1;
	struct splice_state *st = splices.lookup(&key);
	if (!st)
		return 1;
#ifdef MEASURED
#pragma unroll
	for (u32 end = 0; end < 2; end++) {
		struct splice_way *way = &st->way[end];
		s64 waiting = unread_by(&st->sock[!end]), before = way->unread;
		// Its reader's memory holds what came by TCP as well: a FIN, and bytes once it has left.
		if (waiting < 0 || has_read_all(&st->sock[!end]))
			waiting = 0;
		if (st->word != SPLICED && waiting > before)
			waiting = before;
		way->unread = waiting;
		charge(st, end, key.netns_cookie, waiting ? waiting + (way->messages - way->read_messages) * MESSAGE_COST : 0);
		// Nobody told of the end of what was never accepted.
		if (!(key.end & REMAINS) && (st->ends & (CLOSED(!end) | OVER(!end))) == CLOSED(!end) && !is_still(&st->sock[!end])) {
			struct splice_key other = key;
			other.end = !end;
			over(st, &other);
			return 0;
		}
	}
	if (!(key.end & REMAINS) && is_forsaken(st))
		return FORSAKEN;
	if ((key.end & REMAINS) && !st->way[END_POD].charged && !st->way[END_PROXY].charged)
		end_state(st, &key);
#endif
	return 0;
}
