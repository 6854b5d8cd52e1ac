// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// Every map, pinned by name below PIN_ROOT, so that the programs of both files share them and a restarted agent finds them again.
// User space creates those that it fills (`maps.py`) and the loader reuses them; sizes come from the configuration.
#pragma once

#define PIN(name) PIN_ROOT "/maps/" name

BPF_TABLE_PINNED("array", u32, struct generation, generation, 1, PIN("generation"));
BPF_TABLE_PINNED("array", u32, struct config, config, 1, PIN("config"));
BPF_TABLE_PINNED("hash", u32, struct endpoint, endpoints, MAX_ENDPOINTS, PIN("endpoints"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct ipcache_key, struct ipcache_value, ipcache, MAX_IPCACHE, PIN("ipcache"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct class_key, struct class_value, classes, MAX_ROWS, PIN("classes"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct policy_key, struct policy_value, policy, MAX_ROWS, PIN("policy"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct pair_key, struct pair_value, pairs, MAX_PAIRS, PIN("pairs"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", u32, struct listener, listeners, 4096, PIN("listeners"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct ct_key, struct ct_value, conntrack, MAX_CONNECTIONS, PIN("conntrack"), 0);
BPF_TABLE_PINNED("lru_hash", struct fragment_key, struct fragment_value, fragments, 4096, PIN("fragments"), 0);
BPF_TABLE_PINNED("percpu_array", u32, struct counter, reasons, HOOKS * VERDICTS * REASON_SLOTS, PIN("reasons"), 0);
BPF_TABLE_PINNED("percpu_array", u32, struct splice_counters, splice_totals, 1, PIN("splice_totals"), 0);
BPF_TABLE_PINNED("lru_hash", struct splice_key, struct splice_state, splices, MAX_CONNECTIONS, PIN("splices"), 0);
BPF_TABLE_PINNED("hash", struct unspliced_key, u8, unspliced, 65536, PIN("unspliced"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", u64, struct unread, unread, 4 * (MAX_ENDPOINTS + 1), PIN("unread"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", u64, struct sidecar_pod, sidecar_pods, MAX_ENDPOINTS, PIN("sidecar_pods"), BPF_F_NO_PREALLOC);

// A socket that the proxy's cgroup made. Cloned from a listener into the connections that it accepts (BPF_F_CLONE), so TC can tell
// the proxy's sockets from those of any other process, whatever addresses and ports it uses.
BPF_TABLE_PINNED("sk_storage", int, u32, proxy_socks, 0, PIN("proxy_socks"), BPF_F_NO_PREALLOC | BPF_F_CLONE);
BPF_TABLE_PINNED("sk_storage", int, struct sock_tag, sock_tags, 0, PIN("sock_tags"), BPF_F_NO_PREALLOC);
// Which connection between an application and its sidecar a socket belongs to; without a nonce to none, or none yet (sidecar.h).
BPF_TABLE_PINNED("sk_storage", int, struct sock_tag, sidecar_socks, 0, PIN("sidecar_socks"), BPF_F_NO_PREALLOC);

// BCC's own sockhash has a leaf of 4 bytes, which user space can't read; with 8 it gives the socket cookie.
struct socks_table_t {
	struct splice_key key;
	u64 leaf;
	int (*update)(struct splice_key *, u64 *);
	int (*delete)(struct splice_key *);
	int (*sock_hash_update)(void *, void *, u64);
	int (*msg_redirect_hash)(void *, void *, u64);
	int (*sk_redirect_hash)(void *, void *, u64);
	u32 max_entries;
};
__attribute__((section("maps/sockhash:" PIN("socks")))) struct socks_table_t socks = { .max_entries = MAX_CONNECTIONS };
BPF_ANNOTATE_KV_PAIR(socks, struct splice_key, u64);

struct events_table_t {
	int key;
	u32 leaf;
	int (*ringbuf_output)(void *, u64, u64);
	void *(*ringbuf_reserve)(u64);
	void (*ringbuf_discard)(void *, u64);
	void (*ringbuf_submit)(void *, u64);
	u32 max_entries;
};
__attribute__((section("maps/ringbuf:" PIN("events")))) struct events_table_t events = { .max_entries = EVENT_BYTES };
