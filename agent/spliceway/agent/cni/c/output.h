// SPDX-License-Identifier: Apache-2.0
// What the plugin says to the runtime, on stdout.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

// Codes of the spec, section «Error».
enum { INCOMPATIBLE = 1, BAD_ENVIRONMENT = 4, IO_FAILURE = 5, BAD_JSON = 6, BAD_CONFIG = 7, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

// Milliseconds of a clock that is never set.
int64_t now(void);

void print(const char *data, size_t size);

// Errors are told in this version of CNI from now on, which is one of those that `print_versions` tells; false: it is none of them.
bool speak(const char *text, size_t size);

void print_versions(void);

// `message` and `details` are texts of these files and of strerror: nothing in them needs an escape.
_Noreturn void fail(int code, const char *message, const char *details);
