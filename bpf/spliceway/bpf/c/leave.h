// SPDX-License-Identifier: GPL-2.0-only
// Leaving: a spliced connection goes on by TCP for good, and the pod's socket leaves the sockhash. What comes by TCP to a member it would
// not see with FIONREAD, and its blocking recv() would return EAGAIN; so no payload reaches it by TCP before it has left. It may leave
// when it has read all that was redirected to it (what is deleted earlier is lost) and nobody redirects to it any more.
#pragma once

static __always_inline void pod_leaves(struct splice_state *st, struct splice_key *key)
{
	struct splice_counters *t = totals();

	if (__sync_val_compare_and_swap(&st->pod_in, POD_IN, POD_LEAVES) != POD_IN)
		return;
	socks.delete(key);
	st->pod_in = 0;
	if (t)
		t->left++;
}

// TEST_LEAVE_EARLY and TEST_NEVER_LEAVE are what the self-test must find.
#if defined(MEASURED) && !defined(TEST_NEVER_LEAVE)
#define CAN_LEAVE
#endif

// Its memory counts other things as well: transmit timestamps that nobody fetches, say.
static __always_inline int pod_is_behind(const struct splice_state *st)
{
#if defined(CAN_LEAVE) && !defined(TEST_LEAVE_EARLY)
	return !has_read_all(&st->sock[END_POD]) && unread_by(&st->sock[END_POD]) > 0;
#else
	return 0;
#endif
}

// The proxy's end follows when the pod's has left and nothing waits there: as a member it would go on to copy all that it sends into messages first
// (tcp_bpf_sendmsg). A pod's sendmsg() that may still redirect keeps the pod's psock.
static __always_inline void proxy_leaves(struct splice_state *st, const struct splice_key *key)
{
#ifdef CAN_LEAVE
	struct splice_key proxy = *key;

	if (st->pod_in || (st->ends & PROXY_LEFT) || st->word != TCP_ONLY || has_psock(&st->sock[END_POD]))
		return;
	// What was redirected to it until then is to be seen after this barrier. And its key may be another connection's, on the same ports.
	if (!is_word(st, TCP_ONLY) || !has_psock(&st->sock[END_PROXY]) || !has_read_all(&st->sock[END_PROXY]) ||
	    !is_still(&st->sock[END_PROXY]))
		return;
	if (__sync_fetch_and_or(&st->ends, PROXY_LEFT) & PROXY_LEFT)
		return;
	proxy.end = END_PROXY;
	socks.delete(&proxy);
#endif
}

// Must this payload from the proxy wait? A proxy writes to a socket from one thread: what it sends by TCP comes after all that it has
// redirected.
static __always_inline int must_wait(struct splice_state *st, struct splice_key *key)
{
#ifdef CAN_LEAVE
	if (!st->pod_in) {
		proxy_leaves(st, key);
		return 0;
	}
	if (swap(st, SPLICED, TCP_ONLY))
		count_why(st, WHY_PEER_GONE);
	if (pod_is_behind(st)) {
		struct splice_counters *t = totals();
		if (t)
			t->leave_waits++;
		return 1;
	}
	pod_leaves(st, key);
#endif
	return 0;
}

// The pod's end may leave if the proxy is not just sending: a message that was judged before the word changed may be on its way.
static __always_inline void may_leave(struct splice_state *st, struct splice_key *key)
{
#ifdef CAN_LEAVE
	if (!st->pod_in)
		proxy_leaves(st, key);
	if (!st->pod_in || !is_word(st, TCP_ONLY))
		return;
	if (!may_be_sending(&st->sock[END_PROXY]) && !pod_is_behind(st))
		pod_leaves(st, key);
#endif
}
