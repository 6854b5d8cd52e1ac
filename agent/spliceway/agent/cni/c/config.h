// SPDX-License-Identifier: Apache-2.0
// The plugin's part of the configuration.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

#include "json.h"

#define MAX_SECONDS 600
#define DEFAULT_MS 15000

struct config {
    struct span previous, exempt; // of the document
    char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
    int64_t timeout; // in milliseconds
    bool allow;
};

// Fails where the document is not as it must be.
void read_config(struct config *config, const char *document, size_t size);

// Whether the pod's namespace is in exemptNamespaces.
bool is_exempt(const struct config *config);
