// SPDX-License-Identifier: Apache-2.0
// JSON (RFC 8259), read strictly, in place: what is found is a span of what was read.
#pragma once
#include <stdbool.h>
#include <stddef.h>

#define MAX_DEPTH 64

struct span {
    const char *at;
    size_t size;
};

struct reader {
    const char *at, *end;
};

// White space is passed over.
void blank(struct reader *in);

// Whether this character is next, behind white space; then it is passed over.
bool next(struct reader *in, char wanted);

// What stands between the quotes. `plain`: without escapes.
bool string(struct reader *in, struct span *found, bool *plain);

// Any value, `depth` levels deep in others.
bool value(struct reader *in, int depth, struct span *found);

bool is(struct span one, const char *text);
