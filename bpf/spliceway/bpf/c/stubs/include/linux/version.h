#pragma once
// BCC only compares against this to choose helper fallbacks for kernels that are far below Spliceway's floor.
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 15, 0)
