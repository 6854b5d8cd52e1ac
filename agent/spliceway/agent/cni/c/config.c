// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "output.h"

// Of a value that must be a string without escapes.
static struct span text_of(struct span whole, const char *why)
{
    struct reader in = {whole.at, whole.at + whole.size};
    struct span found;
    bool plain;

    if (!string(&in, &found, &plain) || !plain || memchr(found.at, 0, found.size))
        fail(BAD_CONFIG, why, "");
    return found;
}

// Milliseconds of a number like 15 or 2.5.
static int64_t milliseconds(struct span whole)
{
    int64_t found = 0;
    int decimals = -1;

    for (size_t i = 0; i < whole.size; i++) {
        char c = whole.at[i];
        if (c == '.' && decimals < 0) {
            decimals = 0;
        } else if (c >= '0' && c <= '9') {
            if (decimals >= 3)
                continue;
            found = found * 10 + (c - '0');
            decimals += decimals >= 0;
        } else {
            fail(BAD_CONFIG, "timeout is not a number of seconds", "");
        }
        if (found > (int64_t)MAX_SECONDS * 1000)
            fail(BAD_CONFIG, "timeout is longer than 600 seconds", "");
    }
    for (int i = decimals < 0 ? 0 : decimals; i < 3; i++)
        found *= 10;
    if (found <= 0 || found > (int64_t)MAX_SECONDS * 1000)
        fail(BAD_CONFIG, "timeout is not between 0 and 600 seconds", "");
    return found;
}

static void set_version(struct span whole)
{
    struct span told = text_of(whole, "cniVersion is not a plain string");
    if (!speak(told.at, told.size))
        fail(INCOMPATIBLE, "this CNI version is not supported", "supported are 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0");
}

static void set_socket(struct config *config, struct span whole)
{
    struct span path = text_of(whole, "socket is not a plain string");
    if (!path.size || *path.at != '/' || path.size >= sizeof(config->socket))
        fail(BAD_CONFIG, "socket is not an absolute path of at most 107 bytes", "");
    memcpy(config->socket, path.at, path.size);
    config->socket[path.size] = 0;
}

static void set_failure(struct config *config, struct span whole)
{
    struct span told = text_of(whole, "onFailure is neither fail nor allow");
    if (!is(told, "fail") && !is(told, "allow"))
        fail(BAD_CONFIG, "onFailure is neither fail nor allow", "");
    config->allow = is(told, "allow");
}

void read_config(struct config *config, const char *document, size_t size)
{
    static const char *const NAMES[] = {"cniVersion", "prevResult", "socket", "timeout", "onFailure", "exemptNamespaces"};
    struct span found[COUNT(NAMES)] = {{0}}, key, one;
    struct reader in = {document, document + size};
    bool plain;

    if (!next(&in, '{'))
        fail(BAD_JSON, "the configuration is not a JSON object", "");
    if (!next(&in, '}')) {
        do {
            if (!string(&in, &key, &plain) || !plain || !next(&in, ':') || !value(&in, 1, &one))
                fail(BAD_JSON, "the configuration is not valid JSON", "");
            for (size_t i = 0; i < COUNT(NAMES); i++) {
                if (!is(key, NAMES[i]))
                    continue;
                if (found[i].at)
                    fail(BAD_JSON, "a field is there twice in the configuration", NAMES[i]);
                found[i] = one;
            }
        } while (next(&in, ','));
        if (!next(&in, '}'))
            fail(BAD_JSON, "the configuration is not valid JSON", "");
    }
    blank(&in);
    if (in.at != in.end)
        fail(BAD_JSON, "something follows the configuration", "");

    config->timeout = DEFAULT_MS;
    if (!found[0].at)
        fail(INCOMPATIBLE, "the configuration has no cniVersion", "");
    set_version(found[0]);
    if (found[1].at && *found[1].at != '{' && !is(found[1], "null"))
        fail(BAD_CONFIG, "prevResult is not an object", "");
    if (found[1].at && *found[1].at == '{')
        config->previous = found[1];
    if (!found[2].at)
        fail(BAD_CONFIG, "the configuration has no socket", "");
    set_socket(config, found[2]);
    if (found[3].at)
        config->timeout = milliseconds(found[3]);
    if (found[4].at)
        set_failure(config, found[4]);
    if (found[5].at && *found[5].at != '[')
        fail(BAD_CONFIG, "exemptNamespaces is not a list", "");
    config->exempt = found[5];
}

bool is_exempt(const struct config *config)
{
    static const char NAME[] = "K8S_POD_NAMESPACE=";
    const char *arguments = getenv("CNI_ARGS");
    struct span namespace = {0}, one;
    bool exempt = false, plain;

    for (; arguments && *arguments; arguments = strchrnul(arguments, ';'), arguments += *arguments == ';') {
        if (strncmp(arguments, NAME, sizeof(NAME) - 1))
            continue;
        if (namespace.at)
            return false; // there twice: nobody can say which one is meant
        namespace.at = arguments + sizeof(NAME) - 1;
        namespace.size = (size_t)(strchrnul(namespace.at, ';') - namespace.at);
    }
    struct reader in = {config->exempt.at, config->exempt.at + config->exempt.size};
    if (!config->exempt.at || !next(&in, '[') || next(&in, ']'))
        return false;
    do {
        if (!string(&in, &one, &plain) || !plain)
            fail(BAD_CONFIG, "exemptNamespaces has something else than plain strings", "");
        exempt |= namespace.size && one.size == namespace.size && !memcmp(one.at, namespace.at, one.size);
    } while (next(&in, ','));
    return exempt;
}
