// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// From bytes to `struct packet`. What can't be parsed is an error and becomes a counted drop, never a pass. No maps here.
#pragma once

enum packet_kind {
	KIND_FLOW,		// has ports, or needs none
	KIND_ICMP_ERROR,	// `inner` is the tuple it complains about
	KIND_NEIGHBOUR,		// ARP, neighbour discovery, multicast listener reports: the link's own business
};

#define NEIGHBOUR_ADVERTISEMENT 136

struct tuple {
	struct addr src;
	struct addr dst;
	u16 sport;		// network order; ICMP echo: identifier in both; other ICMP: 0
	u16 dport;
};

struct packet {
	struct tuple outer;
	struct tuple inner;	// KIND_ICMP_ERROR; `src` is the target of a neighbour advertisement
	u32 seq;
	u32 fragment_id;
	u32 payload;		// bytes behind the TCP header
	u32 tcp_at;		// where that begins
	u32 payload_at;
	u16 icmp;		// type << 8 | code
	u8 protocol;
	u8 inner_protocol;
	u8 kind;
	u8 family;		// 4 or 6
	u8 tcp_flags;
	u8 first_fragment;	// has the ports; more follow
	u8 later_fragment;	// has no ports
	u8 echo_reply;
	u8 neighbour_type;	// ICMPv6 type of a KIND_NEIGHBOUR packet, 0 for ARP
	u8 bare;		// nothing stands in front of the IP header: it came by a device without Ethernet (a tunnel)
};

static __always_inline void mapped(struct addr *a, u32 ipv4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = 0xffff0000;
	a->w[3] = ipv4;
}

static __always_inline int same_addr(const struct addr *a, const struct addr *b)
{
	return !((a->w[0] ^ b->w[0]) | (a->w[1] ^ b->w[1]) | (a->w[2] ^ b->w[2]) | (a->w[3] ^ b->w[3]));
}

static __always_inline int is_mapped(const struct addr *a)
{
	return !(a->w[0] | a->w[1]) && a->w[2] == 0xffff0000;
}

static __always_inline int is_link_local(const struct addr *a)
{
	return (a->w[0] & 0x0000c0ff) == 0x000080fe;	// fe80::/10
}

static __always_inline int is_link_multicast(const struct addr *a)
{
	return (a->w[0] & 0x0000ffff) == 0x000002ff;	// ff02::/16
}

static __always_inline int is_unspecified(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

// Destination unreachable, time exceeded, parameter problem; source quench and redirect are no errors that anyone needs.
static __always_inline int icmp_is_error(u8 family, u8 type)
{
	if (family == 4)
		return type == 3 || type == 11 || type == 12;
	return type >= 1 && type <= 4;
}

// Neighbour discovery (RFC 4861) and multicast listener reports (RFC 3810).
static __always_inline int icmp6_is_neighbour(u8 type)
{
	return (type >= 133 && type <= 137) || (type >= 130 && type <= 132) || type == 143;
}

#define NO_HEADER (-MALFORMED)
#define IPV4_OPTIONS 12		// so many are read; there is room for 40 without any data
#define IPOPT_END 0
#define IPOPT_NOP 1
#define IPOPT_LSRR 131
#define IPOPT_SSRR 137

// A source route (RFC 791, section 3.1) would send the packet somewhere else than where the verdict was made for: refused.
static __always_inline int ipv4_options(struct __sk_buff *skb, u32 at, u32 end)
{
	for (int i = 0; i < IPV4_OPTIONS; i++) {
		u8 option[2] = {};
		if (at >= end)
			return 0;
		if (bpf_skb_load_bytes(skb, at, option, 1))
			return MALFORMED;
		if (option[0] == IPOPT_END)
			return 0;
		if (option[0] == IPOPT_LSRR || option[0] == IPOPT_SSRR)
			return SOURCE_ROUTE;
		if (option[0] == IPOPT_NOP) {
			at++;
			continue;
		}
		if (at + 1 >= end || bpf_skb_load_bytes(skb, at, option, sizeof(option)) || option[1] < sizeof(option))
			return MALFORMED;
		at += option[1];
	}
	return MALFORMED;
}

// Walks IPv6 extension headers (RFC 8200, section 4) from `*offset`. Returns the upper-layer protocol, or a reason below 0. A routing header
// that is not used up is a source route, too.
static __always_inline int skip_extensions(struct __sk_buff *skb, u32 *offset, u8 next, struct packet *p)
{
	#pragma unroll
	for (int i = 0; i < 6; i++) {
		u8 head[4];
		if (next == PROTO_FRAGMENT) {
			struct ipv6_fragment f;
			if (p->fragment_id || bpf_skb_load_bytes(skb, *offset, &f, sizeof(f)))
				return NO_HEADER;
			u16 om = ntohs(f.offset_more);
			p->fragment_id = f.id ?: 1;
			p->later_fragment = (om >> 3) != 0;
			p->first_fragment = !p->later_fragment && (om & 1);
			next = f.next_header;
			*offset += sizeof(f);
			if (p->later_fragment)
				return next;
			continue;
		}
		if (next != PROTO_HOPOPTS && next != PROTO_DSTOPTS && next != PROTO_ROUTING && next != PROTO_AH)
			return next;
		if (bpf_skb_load_bytes(skb, *offset, head, sizeof(head)))
			return NO_HEADER;
		if (next == PROTO_ROUTING && head[3])
			return -SOURCE_ROUTE;
		*offset += next == PROTO_AH ? ((u32)head[1] + 2) * 4 : ((u32)head[1] + 1) * 8;
		next = head[0];
	}
	return NO_HEADER;
}

// Ports of the packet that an ICMP error quotes. The quote may be cut after 8 bytes of its transport header (RFC 792).
static __always_inline int parse_quote(struct __sk_buff *skb, u32 offset, struct packet *p)
{
	u16 ports[2];
	u8 protocol;

	if (p->family == 4) {
		struct ipv4_header ip;
		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || (ip.version_ihl >> 4) != 4)
			return MALFORMED;
		mapped(&p->inner.src, ip.src);
		mapped(&p->inner.dst, ip.dst);
		protocol = ip.protocol;
		if (ip.fragment & htons(0x1fff))
			return FRAGMENT;
		offset += (ip.version_ihl & 15) * 4;
	} else {
		struct ipv6_header ip;
		if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || (ip.version_class_flow & 0xf0) != 0x60)
			return MALFORMED;
		__builtin_memcpy(&p->inner.src, ip.src, 16);
		__builtin_memcpy(&p->inner.dst, ip.dst, 16);
		protocol = ip.next_header;
		offset += sizeof(ip);
	}
	p->inner_protocol = protocol;
	if (protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP) {
		if (bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
			return MALFORMED;
		p->inner.sport = ports[0];
		p->inner.dport = ports[1];
	} else if (protocol == PROTO_ICMP || protocol == PROTO_ICMPV6) {
		struct icmp_header ic;
		if (bpf_skb_load_bytes(skb, offset, &ic, sizeof(ic)))
			return MALFORMED;
		p->inner.sport = ic.id;
		p->inner.dport = ic.id;
	}
	return 0;
}

static __always_inline int parse_icmp(struct __sk_buff *skb, u32 offset, struct packet *p, u8 hop_limit)
{
	struct icmp_header ic;

	if (bpf_skb_load_bytes(skb, offset, &ic, sizeof(ic)))
		return MALFORMED;
	p->icmp = ((u16)ic.type << 8) | ic.code;
	if (icmp_is_error(p->family, ic.type)) {
		p->kind = KIND_ICMP_ERROR;
		return parse_quote(skb, offset + sizeof(ic), p);
	}
	if (p->family == 6 && icmp6_is_neighbour(ic.type)) {
		// RFC 4861: 255, or it came from beyond the link. Listener reports (RFC 3810) use 1.
		if (hop_limit != (ic.type >= 133 && ic.type <= 137 ? 255 : 1))
			return MALFORMED;
		p->kind = KIND_NEIGHBOUR;
		p->neighbour_type = ic.type;
		if (ic.type == NEIGHBOUR_ADVERTISEMENT && bpf_skb_load_bytes(skb, offset + sizeof(ic), &p->inner.src, sizeof(p->inner.src)))
			return MALFORMED;
		return 0;
	}
	if (ic.type == (p->family == 4 ? 8 : 128) || ic.type == (p->family == 4 ? 0 : 129)) {
		p->outer.sport = ic.id;
		p->outer.dport = ic.id;
		p->echo_reply = ic.type == 0 || ic.type == 129;
	}
	return 0;
}

static __always_inline int parse_transport(struct __sk_buff *skb, u32 offset, u32 end, struct packet *p, u8 hop_limit)
{
	if (p->later_fragment)
		return 0;
	if (p->protocol == PROTO_TCP) {
		struct tcp_header t;
		if (bpf_skb_load_bytes(skb, offset, &t, sizeof(t)))
			return MALFORMED;
		u32 length = (t.offset >> 4) * 4;
		if (length < sizeof(t) || offset + length > end)
			return MALFORMED;
		p->outer.sport = t.sport;
		p->outer.dport = t.dport;
		p->seq = t.seq;
		p->tcp_flags = t.flags;
		p->payload = end - offset - length;
		p->tcp_at = offset;
		p->payload_at = offset + length;
		return 0;
	}
	if (p->protocol == PROTO_UDP || p->protocol == PROTO_SCTP) {
		u16 ports[4];
		if (offset + sizeof(ports) > end || bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
			return MALFORMED;
		p->outer.sport = ports[0];
		p->outer.dport = ports[1];
		return 0;
	}
	if (p->protocol == (p->family == 4 ? PROTO_ICMP : PROTO_ICMPV6)) {
		if (offset + sizeof(struct icmp_header) > end)
			return MALFORMED;
		return parse_icmp(skb, offset, p, hop_limit);
	}
	return 0;
}

static __always_inline int parse_ipv4(struct __sk_buff *skb, u32 offset, struct packet *p)
{
	struct ipv4_header ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)))
		return MALFORMED;
	u32 header = (ip.version_ihl & 15) * 4, end = offset + ntohs(ip.total_length);
	if ((ip.version_ihl >> 4) != 4 || header < sizeof(ip))
		return MALFORMED;
	if (!ip.total_length && skb->gso_size && ip.protocol == PROTO_TCP)
		end = skb->len;		// BIG TCP: longer than the field can say (iph_totlen() in linux/ip.h)
	if (end > skb->len || offset + header > end)
		return MALFORMED;
	p->family = 4;
	p->protocol = ip.protocol;
	mapped(&p->outer.src, ip.src);
	mapped(&p->outer.dst, ip.dst);
	u16 fragment = ntohs(ip.fragment);
	p->later_fragment = (fragment & 0x1fff) != 0;
	p->first_fragment = !p->later_fragment && (fragment & 0x2000);
	p->fragment_id = ip.id;
	int reason = header == sizeof(ip) ? 0 : ipv4_options(skb, offset + sizeof(ip), offset + header);
	return reason ?: parse_transport(skb, offset + header, end, p, ip.ttl);
}

static __always_inline int parse_ipv6(struct __sk_buff *skb, u32 offset, struct packet *p)
{
	struct ipv6_header ip;

	if (bpf_skb_load_bytes(skb, offset, &ip, sizeof(ip)) || (ip.version_class_flow & 0xf0) != 0x60)
		return MALFORMED;
	u32 end = offset + sizeof(ip) + ntohs(ip.payload_length);
	if (!ip.payload_length && skb->gso_size)
		end = skb->len;		// BIG TCP: inside of the kernel, with or without a jumbo option (RFC 2675) behind this header
	if (end > skb->len)
		return MALFORMED;
	p->family = 6;
	__builtin_memcpy(&p->outer.src, ip.src, 16);
	__builtin_memcpy(&p->outer.dst, ip.dst, 16);
	// A mapped address on the wire would meet the keys of IPv4 (RFC 4291, section 2.5.5.2: never on the wire).
	if (is_mapped(&p->outer.src) || is_mapped(&p->outer.dst))
		return MALFORMED;
	offset += sizeof(ip);
	int protocol = skip_extensions(skb, &offset, ip.next_header, p);
	if (protocol < 0)
		return -protocol;
	p->protocol = protocol;
	return parse_transport(skb, offset, end, p, ip.hop_limit);
}

// Fills `p`, which must be zero. `offset`: where the device's packets have their network header, behind an Ethernet header or at the very
// beginning. Returns 0 or the reason to drop.
static __always_inline int parse_packet(struct __sk_buff *skb, struct packet *p, u32 offset)
{
	u16 type = ntohs(skb->protocol);

	#pragma unroll
	for (int i = 0; i < 2; i++) {
		u16 tag[2];
		if (type != ETHERTYPE_VLAN && type != ETHERTYPE_QINQ)
			break;
		if (bpf_skb_load_bytes(skb, offset, tag, sizeof(tag)))
			return MALFORMED;
		type = ntohs(tag[1]);
		offset += sizeof(tag);
	}
	if (type == ETHERTYPE_IPV4)
		return parse_ipv4(skb, offset, p);
	if (type == ETHERTYPE_IPV6)
		return parse_ipv6(skb, offset, p);
	if (type != ETHERTYPE_ARP)
		return UNSUPPORTED_PROTOCOL;

	struct arp_ipv4 arp;
	if (bpf_skb_load_bytes(skb, offset, &arp, sizeof(arp)) || arp.protocol != htons(ETHERTYPE_IPV4) ||
	    arp.hardware_length != 6 || arp.protocol_length != 4)
		return MALFORMED;
	u32 sender;
	__builtin_memcpy(&sender, arp.sender_ip, 4);
	mapped(&p->outer.src, sender);
	p->kind = KIND_NEIGHBOUR;
	p->family = 4;
	return 0;
}
