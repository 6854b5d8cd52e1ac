// SPDX-License-Identifier: GPL-2.0-only
// The ends of a spliced connection: half-closed, closed, released. The state entry goes with the second one.
#pragma once

#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7

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

// A FIN waits in TCP's queue until it is read, as bytes do, and costs nobody anything.
static __always_inline int nothing_unread(const struct splice_end *sock)
{
#ifdef MEASURED
	return unread_by(sock) <= 0 || has_read_all(sock);
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
	end_state(st, key);
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
		end_state(st, &key);
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

// A socket dials that was dissolved (connect() with AF_UNSPEC). TCP's queue was emptied then, but since b8b8315e39ff (Linux 5.16) nobody takes it
// out of the sockhash: what was redirected to it would be read as the first bytes of the new connection.
static __always_inline void dials_again(struct bpf_sock *sk)
{
	struct sock_tag *tag = sock_tags.sk_storage_get(sk, 0, 0);
	struct splice_state *st = tag && tag->nonce ? state_of(&tag->key) : NULL;

	if (st && st->nonce == tag->nonce) {
		struct splice_key key = tag->key;
		socks.delete(&key);
		released(sk);
	}
	if (tag)
		tag->nonce = 0;
}
