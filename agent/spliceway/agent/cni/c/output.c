// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "output.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
static char version[16] = "1.0.0";

int64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000 + at.tv_nsec / 1000000;
}

void print(const char *data, size_t size)
{
    while (size) {
        ssize_t done = write(STDOUT_FILENO, data, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            _exit(1);
        data += done;
        size -= (size_t)done;
    }
}

bool speak(const char *text, size_t size)
{
    for (size_t i = 0; i < COUNT(VERSIONS); i++)
        if (size == strlen(VERSIONS[i]) && !memcmp(text, VERSIONS[i], size)) {
            memcpy(version, text, size);
            version[size] = 0;
            return true;
        }
    return false;
}

void print_versions(void)
{
    print("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[", 43);
    for (size_t i = 0; i < COUNT(VERSIONS); i++) {
        char text[16];
        int size = snprintf(text, sizeof(text), "%s\"%s\"", i ? "," : "", VERSIONS[i]);
        print(text, (size_t)size);
    }
    print("]}\n", 3);
}

_Noreturn void fail(int code, const char *message, const char *details)
{
    char text[512];
    int size = snprintf(text, sizeof(text), "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"spliceway-cni: %s\",\"details\":\"%s\"}\n",
                        version, code, message, details);
    print(text, size < (int)sizeof(text) ? (size_t)size : sizeof(text) - 1);
    _exit(1);
}
