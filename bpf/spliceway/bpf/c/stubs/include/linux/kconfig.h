// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
// BCC includes this file before everything else, from the kernel's build tree. Spliceway's programs use no kernel structure, only
// the fixed width types and the UAPI that BCC carries itself, so this tree stands in for the kernel's and none needs installing.
#pragma once
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;
typedef u8 __u8;
typedef u16 __u16;
typedef u32 __u32;
typedef u64 __u64;
typedef s8 __s8;
typedef s16 __s16;
typedef s32 __s32;
typedef s64 __s64;
typedef u16 __be16;
typedef u32 __be32;
typedef u64 __be64;
typedef u16 __le16;
typedef u32 __le32;
typedef u64 __le64;
typedef u16 __sum16;
typedef u32 __wsum;
typedef _Bool bool;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
#define false 0
#define true 1
#define NULL ((void *)0)
#define CONFIG_BPF_SYSCALL 1
#define CONFIG_CC_STACKPROTECTOR 1
#define PAGE_SIZE 4096
#define __always_inline inline __attribute__((always_inline))
#define __aligned_u64 u64 __attribute__((aligned(8)))
