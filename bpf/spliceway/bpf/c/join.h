// SPDX-License-Identifier: GPL-2.0-only
// Putting both ends of a connection into the sockhash, or deciding for TCP: see the head of redirect.bpf.c.
#pragma once

#define SOL_SOCKET 1
#define SO_SNDBUF 7
#define SO_RCVBUF 8
#define TCP_WINDOW_CLAMP 10
#define TCP_BPF_DELACK_MAX 1003
#define TCP_BPF_RTO_MIN 1004
#define DELACK_MAX_US 20000	// two jiffies of the slowest clock: the kernel takes no less
#define RTO_MIN_US 40000
#define E_TOO_BIG (-7)
#define E_BUSY (-16)

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

// What was held back when a connection left comes again after the proxy's least retransmission time: that of the internet, 0.2 s, is long between
// two sockets of one machine. The pod's kernel acknowledges sooner than that, so that nothing is sent twice for nothing (ca584ba07086, 2b8ee4f05d4f).
static __always_inline void send_again_soon(struct bpf_sock_ops *s, u32 end)
{
	u32 rto = RTO_MIN_US, delay = DELACK_MAX_US;

	if (end == END_PROXY)
		bpf_setsockopt(s, PROTO_TCP, TCP_BPF_RTO_MIN, &rto, sizeof(rto));
	else
		bpf_setsockopt(s, PROTO_TCP, TCP_BPF_DELACK_MAX, &delay, sizeof(delay));
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
		if (t) {
			t->spliced++;
			t->sidecar_spliced += st->leg == LEG_SIDECAR;
		}
		return;
	}
	take_out(st, key);
	take_out(st, &other);
}

// Has the pod's end opened it? A sidecar's port is that of its listener, too.
static __always_inline int is_client_leg(const struct splice_state *st)
{
	return st->leg == LEG_DOWNSTREAM || (st->leg == LEG_SIDECAR && st->port);
}

static __always_inline void established(struct bpf_sock_ops *s, struct splice_key *key, const struct config *cfg)
{
	struct splice_state *st = state_of(key);
	struct bpf_sock *sk = s->sk;
	u8 why = 0;

	if (!st || !sk)
		return;
	send_again_soon(s, key->end);
	bpf_sock_ops_cb_flags_set(s, BPF_SOCK_OPS_STATE_CB_FLAG | (key->end == END_PROXY ? BPF_SOCK_OPS_RTO_CB_FLAG : 0));
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
	if (!(cfg->flags & (is_client_leg(st) ? CONFIG_SPLICE_CLIENTS : CONFIG_SPLICE_SERVERS)))
		why = cfg->flags & CONFIG_SPLICE_OFF ? WHY_OFF : WHY_KERNEL;
	if (s->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		accepting_end(s, key, st, why, cfg);
	else if (why)
		give_up(st, why);
	else
		opening_end(s, key, st, cfg);
}
