// SPDX-License-Identifier: GPL-2.0-only
// Looking at other sockets. A message that is redirected meets no receive buffer: only its reader's own memory count says what waits there
// (redirected bytes are charged to it since 54f89b3178d5 (Linux 6.13), which the stable kernels have, too). SOCK_* and PSOCK_* are offsets in the
// running kernel, from its BTF. Without MEASURED nobody can look.
#pragma once

// BCC makes this a macro for bpf_probe_read, which these programs may not call, where it finds no addresses in /proc/kallsyms: without CAP_SYSLOG the
// kernel shows none. The helper itself is there since Linux 5.5.
#undef bpf_probe_read_kernel

#define PSOCK_TAG 4u		// SK_USER_DATA_PSOCK
#define TAG_BITS 7ull
#define SEND_SHUTDOWN 2

// The full barrier that both sides need who look at each other: returns whether the word is `value`.
static __always_inline int is_word(struct splice_state *st, u64 value)
{
	return __sync_val_compare_and_swap(&st->word, value, value) == value;
}

static __always_inline int swap(struct splice_state *st, u64 from, u64 to)
{
	return __sync_val_compare_and_swap(&st->word, from, to) == from;
}

// Whoever does it first is told so: that one counts it and records it.
static __always_inline int revoke(struct splice_state *st)
{
	return __sync_lock_test_and_set(&st->word, REVOKED) != REVOKED;
}

static __always_inline u32 remains_end(u64 nonce)
{
	return REMAINS | ((u32)nonce & NONCE_PART);
}

static __always_inline void count_why(struct splice_state *st, u8 why)
{
	struct splice_counters *t = totals();

	st->why = why;
	if (t)
		t->by_why[why < WHYS ? why : WHY_NONE]++;
}

// A connection that is never spliced.
static __always_inline void count_tcp_only(struct splice_state *st, u8 why)
{
	struct splice_counters *t = totals();

	count_why(st, why);
	if (t) {
		t->tcp_only++;
		t->sidecar_tcp_only += st->leg == LEG_SIDECAR;
	}
}

#ifdef MEASURED
// Memory of a socket that is gone is used again for another one, so what was read counts only if the cookie is still the same after that, and
// somebody still refers to it.
static __always_inline int is_still(const struct splice_end *s)
{
	u64 cookie = 0;
	u32 references = 0;

	return s->address && !bpf_probe_read_kernel(&cookie, sizeof(cookie), (void *)(s->address + SOCK_COOKIE)) &&
	       cookie == s->cookie &&
	       !bpf_probe_read_kernel(&references, sizeof(references), (void *)(s->address + SOCK_REFERENCES)) && references;
}

// Bytes that this socket's owner has not read, -1 when the socket is gone.
static __always_inline s64 unread_by(const struct splice_end *s)
{
	u32 n = 0;

	if (!s->address || bpf_probe_read_kernel(&n, sizeof(n), (void *)(s->address + SOCK_UNREAD)) || !is_still(s))
		return -1;
	return n;
}

// Has this socket's owner read all that was redirected to it? That waits in a list of the psock, and goes with it; what came by TCP is in
// another queue, and is read after it. 0: not for sure.
static __always_inline int has_read_all(const struct splice_end *s)
{
	u64 psock = 0, first = 0;

	if (bpf_probe_read_kernel(&psock, sizeof(psock), (void *)(s->address + SOCK_USER_DATA)))
		return 0;
	if (!(psock & PSOCK_TAG))
		return !psock;
	u64 list = (psock & ~TAG_BITS) + PSOCK_MESSAGES;
	return !bpf_probe_read_kernel(&first, sizeof(first), (void *)list) && first == list;
}

// Is this socket in the sockhash, or was it when a sendmsg() began that goes on? 1 also when that can't be read.
static __always_inline int has_psock(const struct splice_end *s)
{
	u64 psock = 0;

	return bpf_probe_read_kernel(&psock, sizeof(psock), (void *)(s->address + SOCK_USER_DATA)) || (is_still(s) && psock);
}

// How much may wait unread at this socket? Never more than its receive buffer: a packet that arrives while the reader holds the socket's
// lock is dropped when there is more (tcp_add_backlog), and a RST does not come again.
static __always_inline s64 most_unread_by(const struct splice_end *s, const struct config *cfg)
{
	u32 buffer = 0;

	if (bpf_probe_read_kernel(&buffer, sizeof(buffer), (void *)(s->address + SOCK_RECEIVE_BUFFER)))
		return 0;
	return buffer < cfg->unread_connection ? buffer : cfg->unread_connection;
}

// May somebody be in the middle of sending on this socket? sendmsg() holds a reference of the psock, the sockhash another.
static __always_inline int may_be_sending(const struct splice_end *s)
{
	u64 psock = 0;
	u32 references = 0;

	if (bpf_probe_read_kernel(&psock, sizeof(psock), (void *)(s->address + SOCK_USER_DATA)))
		return 1;
	if (!is_still(s) || !(psock & PSOCK_TAG))
		return 0;
	psock &= ~TAG_BITS;
	return bpf_probe_read_kernel(&references, sizeof(references), (void *)(psock + PSOCK_REFERENCES)) || references != 1;
}

// Was anything written to this socket that its peer has not acknowledged, or does somebody wait inside of TCP's own sendmsg() for the
// connection to be there? What that sends meets no program.
static __always_inline int is_written(const struct splice_end *s, u32 acknowledged)
{
	u32 writers = 0, written = 0;

	return bpf_probe_read_kernel(&writers, sizeof(writers), (void *)(s->address + SOCK_WRITERS)) || writers ||
	       bpf_probe_read_kernel(&written, sizeof(written), (void *)(s->address + SOCK_WRITTEN)) || written != acknowledged;
}

// A redirect takes the lock of its reader's socket, and waits for it however long somebody else holds it (bpf_tcp_ingress): an owner whose recv() is
// throttled, or waits for a page of a file, would keep the proxy. One that reads gets on within these looks, a tenth of a millisecond: a page
// fragment of 32 KiB is copied between two steps of its. Whoever was stuck some times in a row is looked at less, ten microseconds.
#define LOOKS 256
#define FEW_LOOKS 16
#define TIMES_IN_A_ROW 4

static __always_inline void pause_some(void)
{
#pragma unroll
	for (u32 i = 0; i < 8; i++)
		bpf_ktime_get_ns();		// a quarter of a microsecond in all
}

static __always_inline int gets_on(const struct splice_end *s, u32 looks)
{
	u32 owned, unread, before = 0;

	for (u32 i = 0; i < LOOKS; i++) {
		owned = 0;
		if (bpf_probe_read_kernel(&owned, sizeof(owned), (void *)(s->address + SOCK_OWNED)) || !owned)
			return 1;
		if (bpf_probe_read_kernel(&unread, sizeof(unread), (void *)(s->address + SOCK_UNREAD)) || (i && unread != before))
			return 1;
		if (i >= looks)
			return 0;
		before = unread;
		pause_some();
	}
	return 0;
}

// Is the pod stuck in recv()?
static __always_inline int is_stuck(struct splice_state *st)
{
	u8 times = st->stuck;

	if (gets_on(&st->sock[END_POD], times < TIMES_IN_A_ROW ? LOOKS : FEW_LOOKS)) {
		st->stuck = 0;
		return 0;
	}
	if (times < TIMES_IN_A_ROW)
		st->stuck = times + 1;
	return 1;
}

static __always_inline int is_half_closed(const struct splice_end *s)
{
	u8 shutdown = 0;

	return !bpf_probe_read_kernel(&shutdown, sizeof(shutdown), (void *)(s->address + SOCK_SHUTDOWN)) && shutdown == SEND_SHUTDOWN;
}
#endif

static __always_inline u64 counted(u64 n)
{
	return n > UNREAD_FLOOR ? n : 0;
}

static __always_inline s64 sum_of(u64 cookie)
{
	struct unread *u = unread.lookup(&cookie);

	return u ? (s64)u->bytes : 0;
}

static __always_inline void add_to_sum(u64 cookie, u64 difference)
{
	struct unread none = {}, *u = unread.lookup(&cookie);

	// What is taken off after the endpoint has gone makes no new sum.
	if (!u && (s64)difference > 0)
		u = unread.lookup_or_try_init(&cookie, &none);
	if (u)
		__sync_fetch_and_add(&u->bytes, difference);
}

// What waits in a direction may cost `n` now. By exchange: whoever does this at the same time, the sums stay sums.
static __always_inline void charge(struct splice_state *st, u32 end, u64 cookie, u64 n)
{
	u64 before = __sync_lock_test_and_set(&st->way[end & 1].charged, n);
	u64 difference = counted(n) - counted(before);

	if (!difference)
		return;
	add_to_sum(cookie, difference);
	add_to_sum(0, difference);
}

// The reader of a direction is gone, or nothing waits there.
static __always_inline void charge_nothing(struct splice_state *st, u32 end, u64 cookie)
{
	st->way[end & 1].unread = 0;
	charge(st, end, cookie, 0);
}

// Takes the buffer off that its proxy got.
static __always_inline void return_held(struct splice_state *st, u64 cookie)
{
	u64 held = st->held;

	if (!held)
		return;
	st->held = 0;
	add_to_sum(cookie | HELD_SUMS, -held);
	add_to_sum(HELD_SUMS, -held);
}

static __always_inline void end_state(struct splice_state *st, struct splice_key *key)
{
	return_held(st, key->netns_cookie);
	splices.delete(key);
}

// At most how many messages wait when `waiting` bytes do? They are read in order, so all before a mark are read when its bytes are. For who sends.
static __always_inline u64 messages_waiting(struct splice_way *way, u64 waiting)
{
	if (way->bytes >= waiting + way->mark_bytes) {
		way->read_messages = way->mark_messages;
		way->mark_bytes = way->bytes;
		way->mark_messages = way->messages;
	}
	return waiting ? way->messages - way->read_messages : 0;
}
