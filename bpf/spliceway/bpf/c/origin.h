// SPDX-License-Identifier: GPL-2.0-only
// Where a packet on its way out of a device is from: a socket of the proxy's or of the node's, or elsewhere.
#pragma once

#define FROM_ELSEWHERE 0	// forwarded: from another pod or from outside
#define FROM_NODE 1		// a socket of the node
#define FROM_PROXY_SOCK 2
#define FAMILY_INET 2
#define FAMILY_INET6 10
#define SOCK_RAW 3

struct origin {
	u32 from;
	u32 mark;		// FROM_PROXY_SOCK only
	u32 known;		// `real` is that of a socket that can't choose what its packets say
	// The ends of the node's socket, as its packets have them before netfilter gives them others. A socket that resets has given up its own port.
	struct tuple real;
};

// Where does this packet come from? No pod, no other process of the node and no packet from outside can have a socket of the proxy's: the
// mark sits in the socket, and only the sockops program of the proxy's cgroup sets it.
static __always_inline void find_origin(struct __sk_buff *skb, const struct packet *p, struct origin *o)
{
	struct bpf_sock *sk = skb->sk;

	o->mark = o->known = 0;
	o->from = FROM_ELSEWHERE;
	// What netfilter had put together is cut anew when it is forwarded, and IPv6's pieces don't keep their device. Those of the node's own sockets
	// keep their socket (ip6_fragment).
	if (skb->ingress_ifindex || (!sk && (p->first_fragment || p->later_fragment)))
		return;
	if (sk)
		o->mark = is_proxy_sock(sk);
	o->from = o->mark ? FROM_PROXY_SOCK : FROM_NODE;
	if (!sk)
		return;
	if (!o->mark) {
		struct bpf_sock *full = bpf_sk_fullsock(sk);
		if ((sk->family != FAMILY_INET && sk->family != FAMILY_INET6) || (full && full->type == SOCK_RAW))
			return;
	}
	o->known = 1;
	// All of it is read, and before it is asked for: the verifier knows constant offsets only, and the compiler likes to compute them.
	volatile struct bpf_sock *v = sk;
	u32 s4 = v->src_ip4, s0 = v->src_ip6[0], s1 = v->src_ip6[1], s2 = v->src_ip6[2], s3 = v->src_ip6[3];
	u32 d4 = v->dst_ip4, d0 = v->dst_ip6[0], d1 = v->dst_ip6[1], d2 = v->dst_ip6[2], d3 = v->dst_ip6[3];
	o->real.sport = htons(v->src_port);
	o->real.dport = v->dst_port;
	if (p->family == 4) {
		mapped(&o->real.src, s4);
		mapped(&o->real.dst, d4);
	} else {
		o->real.src = (struct addr){ { s0, s1, s2, s3 } };
		o->real.dst = (struct addr){ { d0, d1, d2, d3 } };
	}
}
