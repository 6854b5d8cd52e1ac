// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
#pragma once
// Instruction encoding (UAPI): BCC's bpf.h names these, our programs do not.
#define BPF_CLASS(code) ((code) & 0x07)
#define BPF_MAXINSNS 4096
