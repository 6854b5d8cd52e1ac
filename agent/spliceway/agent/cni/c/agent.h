// SPDX-License-Identifier: Apache-2.0
// The agent of this node, on its Unix socket.
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "config.h"

#define MAX_ANSWER (64u << 10)

// What the runtime says, as it came.
struct question {
    const char *environment, *document;
    size_t variables, size; // of these, in bytes
};

// What the agent says: a CNI error where it failed.
struct answer {
    bool failed;
    size_t size;
    char text[MAX_ANSWER];
};

// Gives NULL, or why there is no answer. `patient`: an agent that is not there is waited for.
const char *ask(const struct config *config, bool patient, const struct question *asked, struct answer *answer);
