// SPDX-License-Identifier: GPL-2.0-only
// Choosing a backend. Readers run while user space changes the maps. It writes in this order (services.py): backends that come; rows of
// further blocks; rows of block 0, with the count; frontends that come; frontends that go. Then it waits until no program runs that began
// before, and deletes rows and backends that nothing names any more. So every place below the count that a reader finds is taken, by a backend
// that is there, or was there when the reader began.
//
// One thing is left: the kernel gives the memory of an element that was replaced or deleted to the next one at once, whatever key that has, so a
// reader may find another key's value behind the pointer that it got. So nothing is believed that was read once. A frontend's word is
// compared with what a second look-up finds, at the end; a backend belongs to the set by its key, and is read twice. Where that does not fit, it
// begins again; and when it never fits, it refuses.
#pragma once

#define LB_TRIES 4
#define LB_SET(word) ((u32)(word))
#define LB_SECONDS(word) ((u32)((word) >> 32))

enum lb_answer {
	LB_OTHER,	// no Service's address: nothing of ours
	LB_FOUND,
	LB_NOBODY,	// the Service has no backend
};

static __always_inline int same_backend(const struct lb_backend *a, const struct lb_backend *b)
{
	return same_addr(&a->addr, &b->addr) && a->port == b->port;
}

static __always_inline int same_frontend(const struct lb_key *a, const struct lb_key *b)
{
	return same_addr(&a->addr, &b->addr) && a->port == b->port && a->protocol == b->protocol;
}

// Is there a backend of this number in the set, and which one?
static __always_inline int find_backend(u32 set, u32 number, struct lb_backend *to)
{
	struct lb_backend_key key = { .set = set, .number = number };
	struct lb_backend *found = number ? lb_backends.lookup(&key) : NULL;

	if (!found)
		return 0;
	*to = *found;
	found = lb_backends.lookup(&key);
	return found && same_backend(to, found);
}

// One of the set by chance. The number is 0 when what was read did not fit together.
static __always_inline enum lb_answer pick(u32 set, u32 *number)
{
	struct lb_row_key key = { .set = set };
	struct lb_row *row = lb_rows.lookup(&key);

	*number = 0;
	if (!row)
		return LB_FOUND;
	u32 count = row->count;
	if (!count)
		return LB_NOBODY;
	u32 at = bpf_get_prandom_u32() % count;
	u32 place = at % LB_ROW;
	key.block = at / LB_ROW;
	if (key.block)
		row = lb_rows.lookup(&key);
	asm volatile("" : "+r"(place));		// the compiler knows the range, the verifier does not
	if (row && place < LB_ROW)
		*number = row->number[place];
	return LB_FOUND;
}

// Affinity is for a client, and who that is the pod's network namespace says: its address would do as well, but it is not known before the
// connection is there, and a pod has two of them. As with kube-proxy, the time runs from the last new connection.
static __always_inline u32 favourite(u64 cookie, u32 set, u32 seconds)
{
	struct lb_affinity_key key = { .netns_cookie = cookie, .set = set };
	struct lb_affinity *found = lb_affinities.lookup(&key);

	if (!found)
		return 0;
	u64 now = bpf_ktime_get_ns();	// another CPU may have come later, and been faster
	return now <= found->seen || now - found->seen <= seconds * 1000000000ull ? found->number : 0;
}

static __always_inline void remember(u64 cookie, u32 set, u32 number)
{
	struct lb_affinity_key key = { .netns_cookie = cookie, .set = set };
	struct lb_affinity value = { .seen = bpf_ktime_get_ns(), .number = number };

	lb_affinities.update(&key, &value);
}

static __always_inline enum lb_answer choose_once(u64 cookie, u32 set, u32 seconds, struct lb_peer *peer)
{
	u32 number = seconds ? favourite(cookie, set, seconds) : 0;

	peer->number = 0;
	if (!find_backend(set, number, &peer->backend)) {
		if (pick(set, &number) == LB_NOBODY)
			return LB_NOBODY;
		if (!find_backend(set, number, &peer->backend))
			return LB_FOUND;
	}
	peer->set = set;
	peer->number = number;
	return LB_FOUND;
}

// A backend for whoever dials `peer->frontend`, in `peer`.
static __always_inline enum lb_answer choose(u64 cookie, struct lb_peer *peer)
{
	for (u32 i = 0; i < LB_TRIES; i++) {
		struct lb_frontend *frontend = lb_frontends.lookup(&peer->frontend);
		if (!frontend)
			return LB_OTHER;
		u64 word = frontend->word;
		enum lb_answer answer = choose_once(cookie, LB_SET(word), LB_SECONDS(word), peer);
		frontend = lb_frontends.lookup(&peer->frontend);
		if (!frontend || frontend->word != word || (answer == LB_FOUND && !peer->number))
			continue;
		if (answer == LB_FOUND && LB_SECONDS(word))
			remember(cookie, peer->set, peer->number);
		return answer;
	}
	return LB_NOBODY;
}
