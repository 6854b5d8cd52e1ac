// SPDX-License-Identifier: GPL-2.0-only
// Whether a message may be redirected: how far its reader is behind.
#pragma once

// A message of less than this is small. After so many more small ones that found their reader behind than ones that did not, TCP is better.
#define SMALL_MESSAGE 16384u
#define SMALL_RUN 8u

// So many bytes may wait unread at a pod whose proxy does not ask for room. When it leaves, nothing more gets through before they are read,
// and Envoy gives up a connection that it wants to close when a second passes like that.
#define UNASKED_LIMIT 262144u

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
	if (end == END_PROXY && is_stuck(st))
		return WHY_READER_STUCK;
	// A send() that had begun when the handshake ended went by TCP, past is_early().
	if (!way->messages && end == END_POD && is_client_leg(st) && is_written(&st->sock[END_POD], ntohl(st->isn) + 1))
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
	if ((s64)n > most_unread_by(&st->sock[!end], cfg) || cost > cfg->unread_connection ||
	    (end == END_PROXY && !st->asks && waiting && n > UNASKED_LIMIT))
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
