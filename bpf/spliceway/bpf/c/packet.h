// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// Wire formats, as far as the programs read them. Multi-byte fields are in network order.
#pragma once

#define ETH_HEADER 14
#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_QINQ 0x88a8

#define PROTO_ICMP 1
#define PROTO_IPIP 4
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_IPV6 41
#define PROTO_ROUTING 43
#define PROTO_FRAGMENT 44
#define PROTO_GRE 47
#define PROTO_ESP 50
#define PROTO_AH 51
#define PROTO_ICMPV6 58
#define PROTO_DSTOPTS 60
#define PROTO_HOPOPTS 0
#define PROTO_ETHERIP 97
#define PROTO_SCTP 132
#define PROTO_MPLS 137

#define htons(x) ((u16)__builtin_bswap16((u16)(x)))
#define ntohs(x) ((u16)__builtin_bswap16((u16)(x)))
#define htonl(x) ((u32)__builtin_bswap32((u32)(x)))
#define ntohl(x) ((u32)__builtin_bswap32((u32)(x)))

struct ipv4_header {
	u8 version_ihl;
	u8 tos;
	u16 total_length;
	u16 id;
	u16 fragment;		// flags (3 bits) and offset in units of 8 bytes
	u8 ttl;
	u8 protocol;
	u16 checksum;
	u32 src;
	u32 dst;
};

struct ipv6_header {
	u32 version_class_flow;
	u16 payload_length;
	u8 next_header;
	u8 hop_limit;
	u32 src[4];
	u32 dst[4];
};

struct ipv6_fragment {
	u8 next_header;
	u8 reserved;
	u16 offset_more;	// offset in units of 8 bytes (13 bits), reserved (2), more (1)
	u32 id;
};

struct tcp_header {
	u16 sport;
	u16 dport;
	u32 seq;
	u32 ack;
	u8 offset;		// upper four bits: length in units of 4 bytes
	u8 flags;
	u16 window;
	u16 checksum;
	u16 urgent;
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct icmp_header {
	u8 type;
	u8 code;
	u16 checksum;
	u16 id;
	u16 sequence;
};

struct arp_ipv4 {
	u16 hardware;
	u16 protocol;
	u8 hardware_length;
	u8 protocol_length;
	u16 operation;
	u8 sender_mac[6];
	u8 sender_ip[4];
	u8 target_mac[6];
	u8 target_ip[4];
};
