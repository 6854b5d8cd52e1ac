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

#define TCP_ESTABLISHED 1
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define SOL_SOCKET 1
#define SO_RCVBUF 8
#define TCP_WINDOW_CLAMP 10
#define TCP_ULP 31
#define E_TOO_BIG (-7)
#define E_BUSY (-16)

// A message of less than this is small. After so many more small ones that found their reader behind than ones that did not, TCP is better.
#define SMALL_MESSAGE 16384u
#define SMALL_RUN 8u

// A proxy that waits for room is not told of less.
#define LEAST_ROOM 65536

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

static __always_inline void give_up(struct splice_state *st, u8 why)
{
	if (swap(st, UNDECIDED, TCP_ONLY) || swap(st, ACTIVE_IN, TCP_ONLY))
		count_tcp_only(st, why);
}

// Makes room for the bytes that may wait unread (measure.h), as far as net.core.rmem_max allows. A buffer of a size that was set does not grow
// any more, nor does its window, so that is opened, too: for what comes by TCP once the connection has left.
static __always_inline void make_room(struct bpf_sock_ops *s, const struct config *cfg)
{
	u32 half = cfg->unread_connection / 2;		// the kernel doubles it
	u32 window = half;

	bpf_setsockopt(s, SOL_SOCKET, SO_RCVBUF, &half, sizeof(half));
	bpf_setsockopt(s, PROTO_TCP, TCP_WINDOW_CLAMP, &window, sizeof(window));
}

// Puts the socket into the sockhash. Returns 0 or why not.
static __always_inline u8 join(struct bpf_sock_ops *s, const struct splice_key *key, struct splice_state *st, const struct config *cfg)
{
	struct sock_tag empty = {}, *tag;
	struct splice_key k = *key;
	struct bpf_sock *sk = s->sk;

	if (!sk)
		return WHY_MAP_ERROR;
	tag = sock_tags.sk_storage_get(sk, &empty, BPF_SK_STORAGE_GET_F_CREATE);
	if (!tag)
		return WHY_MAP_ERROR;
	tag->nonce = st->nonce;
	tag->key = k;
	if (k.end == END_POD)
		st->pod_in = POD_IN;
	long failed = socks.sock_hash_update(s, &k, BPF_ANY);
	if (!failed) {
		make_room(s, cfg);
		return 0;
	}
	if (k.end == END_POD)
		st->pod_in = 0;
	tag->nonce = 0;
	return failed == E_TOO_BIG ? WHY_MAP_FULL : failed == E_BUSY ? WHY_OTHER_OWNER : WHY_MAP_ERROR;
}

// Takes an end out before anything was sent to it.
static __always_inline void take_out(struct splice_state *st, struct splice_key *key)
{
	socks.delete(key);
	if (key->end == END_POD)
		st->pod_in = 0;
}

// Were bytes sent, or are they about to be, before there was a connection? What is redirected would overtake them. Data of a SYN that was lost
// comes after the SYN.
static __always_inline int is_early(struct bpf_sock_ops *s, const struct splice_end *sock)
{
#ifdef MEASURED
	return is_written(sock, s->snd_una);
#else
	return s->snd_nxt != s->snd_una;
#endif
}

static __always_inline void opening_end(struct bpf_sock_ops *s, struct splice_key *key, struct splice_state *st, const struct config *cfg)
{
	if (is_early(s, &st->sock[key->end & 1]))
		give_up(st, WHY_SENT_FIRST);
	if (st->word != UNDECIDED)
		return;
	u8 why = join(s, key, st, cfg);
	if (why)
		give_up(st, why);
	else if (!swap(st, UNDECIDED, ACTIVE_IN))
		take_out(st, key);
}

// `why`: it must not be spliced.
static __always_inline void accepting_end(struct bpf_sock_ops *s, struct splice_key *key, struct splice_state *st, u8 why,
					  const struct config *cfg)
{
	struct splice_key other = *key;

	other.end = key->end == END_POD ? END_PROXY : END_POD;
#ifdef TEST_DECIDE_EVERY_TIME
	join(s, key, st, cfg);
	return;
#endif
	if (why)
		give_up(st, why);
	else if (st->word == UNDECIDED)
		give_up(st, WHY_NO_ACTIVE);
	if (st->word != ACTIVE_IN) {
		take_out(st, &other);
		return;
	}
	why = join(s, key, st, cfg);
	if (why) {
		give_up(st, why);
		take_out(st, &other);
		return;
	}
	if (swap(st, ACTIVE_IN, SPLICED)) {
		struct splice_counters *t = totals();
		if (t)
			t->spliced++;
		return;
	}
	take_out(st, key);
	take_out(st, &other);
}

static __always_inline void established(struct bpf_sock_ops *s, struct splice_key *key, const struct config *cfg)
{
	struct splice_state *st = state_of(key);
	struct bpf_sock *sk = s->sk;
	u8 why = 0;

	if (!st || !sk)
		return;
	bpf_sock_ops_cb_flags_set(s, BPF_SOCK_OPS_STATE_CB_FLAG);
	// What this socket had before, and was dissolved (connect() with AF_UNSPEC), is not this connection.
	struct sock_tag *tag = sock_tags.sk_storage_get(sk, 0, 0);
	if (tag && tag->nonce != st->nonce)
		tag->nonce = 0;
	st->sock[key->end & 1].address = (u64)(unsigned long)sk;
	st->sock[key->end & 1].cookie = bpf_get_socket_cookie(s);
	// The listener that has accepted it, not the one that was there when the SYN came first.
	u32 *mark = key->end == END_PROXY ? proxy_socks.sk_storage_get(sk, 0, 0) : NULL;
	if (mark && *mark != PROXY_CONNECTED)
		st->port = *mark;
	if (!(cfg->flags & (st->leg == LEG_UPSTREAM ? CONFIG_SPLICE_SERVERS : CONFIG_SPLICE_CLIENTS)))
		why = cfg->flags & CONFIG_SPLICE_OFF ? WHY_OFF : WHY_KERNEL;
	if (s->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		accepting_end(s, key, st, why, cfg);
	else if (why)
		give_up(st, why);
	else
		opening_end(s, key, st, cfg);
}

// The pod has shut down its sending side. When it waits in recv() for the answer then, the acknowledgement of its FIN wakes it, and a member
// returns EAGAIN for that. (A thread that sleeps there already is woken by shutdown() itself, in inet_shutdown(): too late for it.) A socket
// that is closed altogether waits for nothing, and one with something to read does not wait.
static __always_inline void half_closed(struct splice_state *st, struct splice_key *key)
{
#ifdef MEASURED
	if (key->end != END_POD || !is_half_closed(&st->sock[END_POD]) || pod_is_behind(st))
		return;
	if (swap(st, SPLICED, TCP_ONLY))
		count_why(st, WHY_HALF_CLOSED);
	may_leave(st, key);
#endif
}

static __always_inline int nothing_unread(const struct splice_end *sock)
{
#ifdef MEASURED
	return unread_by(sock) <= 0;
#else
	return 1;
#endif
}

// An end is over. The entry goes with the second one, or when the other never came to be.
static __always_inline void over(struct splice_state *st, struct splice_key *key)
{
	u32 end = key->end & 1;

	charge_nothing(st, !end, key->netns_cookie);
	u64 ends = __sync_fetch_and_or(&st->ends, OVER(end));
	if (!(ends & OVER(!end)) && st->sock[!end].cookie)
		return;
	charge_nothing(st, end, key->netns_cookie);
	key->end = END_POD;
	splices.delete(key);
}

// The state entry ends with the connection: what outlives it would meet the next one on these ports.
static __always_inline void closed(struct bpf_sock_ops *s, struct splice_key *key)
{
	struct sock_tag *tag = NULL;
	struct splice_state *st = state_of(key);
	struct bpf_sock *sk = s->sk;

	if (!st)
		return;
	if (s->args[1] == TCP_FIN_WAIT1)
		half_closed(st, key);
	if (s->args[1] != TCP_CLOSE)
		return;
	if (sk)
		tag = sock_tags.sk_storage_get(sk, 0, 0);
	// A socket without a tag never joined (splicing was off, say). Should it be an older connection's, the new one's first SYN meets
	// no state when it comes again, or a byte of it finds none: by TCP then.
	if (tag && !tag->nonce)
		tag = NULL;
	if (tag && tag->nonce != st->nonce)
		return;		// an older connection's socket
	u64 ends = __sync_fetch_and_or(&st->ends, CLOSED(key->end & 1));
	if (!tag || (ends & RELEASED(key->end & 1)) || nothing_unread(&st->sock[key->end & 1]))
		over(st, key);
}

// The same for a connection whose ports another one has by now.
static __always_inline void released_remains(const struct sock_tag *tag)
{
	struct splice_key key = tag->key;
	u32 end = key.end & 1;

	key.end = remains_end(tag->nonce);
	struct splice_state *st = splices.lookup(&key);
	if (!st || st->nonce != tag->nonce)
		return;
	charge_nothing(st, !end, key.netns_cookie);
	if (!st->way[end].charged)
		splices.delete(&key);
}

// Its owner has closed the socket: what was unread there is gone.
static __always_inline int released(struct bpf_sock *sk)
{
	struct sock_tag *tag = sock_tags.sk_storage_get(sk, 0, 0);
	struct splice_state *st = tag ? state_of(&tag->key) : NULL;

	if (!st || st->nonce != tag->nonce) {
		if (tag)
			released_remains(tag);
		return 1;
	}
	struct splice_key key = tag->key;
	u32 end = key.end & 1;
	u64 ends = __sync_fetch_and_or(&st->ends, RELEASED(end));
	charge_nothing(st, !end, key.netns_cookie);
	if (ends & CLOSED(end))
		over(st, &key);
	return 1;
}

int release_pod(struct bpf_sock *sk)
{
	return released(sk);
}

int release_proxy(struct bpf_sock *sk)
{
	return released(sk);
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
	struct party pod, peer;

	int allowed = may_go_on(k, st->leg, st->rule_set, st->port, number & 1, &pod, &peer, &d);
	if (allowed) {
		u8 before = st->reason;
		st->generation = number;
		st->reason = d.reason;
		if (st->leg == LEG_UPSTREAM || !denies(d.reason) || before == d.reason)
			return 1;
	}
	tell(k, st->leg, &pod, &peer, &d, allowed, size);
	return allowed;
}

// Why this message must not be redirected, or 0: its reader is too far behind, or small ones keep finding it so.
static __always_inline u8 too_much(struct splice_state *st, u32 end, u64 cookie, u32 size, const struct config *cfg)
{
	struct splice_way *way = &st->way[end & 1];
#ifdef TEST_NO_LIMIT
	return 0;
#endif
#ifdef MEASURED
	s64 waiting = unread_by(&st->sock[!end]);

	if (waiting < 0)
		return WHY_PEER_GONE;
	if (end == END_PROXY && is_stuck(&st->sock[END_POD]))
		return WHY_READER_STUCK;
	// A send() that had begun when the handshake ended went by TCP, past is_early().
	if (!way->messages && end == END_POD && st->leg == LEG_DOWNSTREAM && is_written(&st->sock[END_POD], ntohl(st->isn) + 1))
		return WHY_SENT_FIRST;
	if (end == END_POD && size < SMALL_MESSAGE) {
		if (!waiting)
			way->behind -= !!way->behind;
		else if (way->behind < SMALL_RUN)
			way->behind++;
		else if (!pod_is_behind(st))	// otherwise the next bytes to the pod would have to wait
			return WHY_SMALL_WRITES;
	}
	u64 n = (u64)waiting + size, cost = n + (messages_waiting(way, waiting) + 1) * MESSAGE_COST;
	s64 more = counted(cost) - counted(way->charged);
	u8 why = 0;
	if ((s64)n > most_unread_by(&st->sock[!end], cfg) || cost > cfg->unread_connection)
		why = WHY_UNREAD_LIMIT;
	else if (more > 0 && (sum_of(cookie) + more > (s64)cfg->unread_endpoint || sum_of(0) + more > (s64)cfg->unread_node))
		why = WHY_UNREAD_BUDGET;
	if (why)
		return why;
	way->unread = n;
	charge(st, end, cookie, cost);
	return 0;
#else
	// Nobody can look: all that was ever sent may wait there.
	return way->bytes + size > cfg->unread_connection ? WHY_UNREAD_LIMIT : 0;
#endif
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
	struct splice_counters *t = totals();
	if (st->word == REVOKED)
		return SK_DROP;
	if (st->generation != g->number && !still_allowed(st, &tag->key, g->number, size)) {
		if (t && st->word != REVOKED)
			t->revoked++;
		st->word = REVOKED;
		return SK_DROP;
	}
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
	u32 end = tag->key.end & 1, stuck = is_stuck(&st->sock[!end]);
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
		// Once it has left, its reader's memory holds bytes that came by TCP as well.
		if (waiting < 0 || (st->word != SPLICED && has_read_all(&st->sock[!end])))
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
		splices.delete(&key);
#endif
	return 0;
}
