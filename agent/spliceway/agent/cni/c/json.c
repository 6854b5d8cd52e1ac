// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include <string.h>

void blank(struct reader *in)
{
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r'))
        in->at++;
}

bool next(struct reader *in, char wanted)
{
    blank(in);
    if (in->at >= in->end || *in->at != wanted)
        return false;
    in->at++;
    return true;
}

static bool hexadecimal(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

bool string(struct reader *in, struct span *found, bool *plain)
{
    if (!next(in, '"'))
        return false;
    found->at = in->at;
    *plain = true;
    while (in->at < in->end) {
        unsigned char c = (unsigned char)*in->at++;
        if (c == '"') {
            found->size = (size_t)(in->at - 1 - found->at);
            return true;
        }
        if (c < 0x20)
            return false;
        if (c != '\\')
            continue;
        *plain = false;
        if (in->at >= in->end)
            return false;
        c = (unsigned char)*in->at++;
        if (c == 'u') {
            if (in->end - in->at < 4)
                return false;
            for (int i = 0; i < 4; i++)
                if (!hexadecimal(*in->at++))
                    return false;
        } else if (!c || !strchr("\"\\/bfnrt", c)) {
            return false;
        }
    }
    return false;
}

static bool digits(struct reader *in)
{
    const char *begin = in->at;
    while (in->at < in->end && *in->at >= '0' && *in->at <= '9')
        in->at++;
    return in->at > begin;
}

static bool number(struct reader *in)
{
    if (in->at < in->end && *in->at == '-')
        in->at++;
    if (in->at < in->end && *in->at == '0')
        in->at++;
    else if (!digits(in))
        return false;
    if (in->at < in->end && *in->at == '.') {
        in->at++;
        if (!digits(in))
            return false;
    }
    if (in->at < in->end && (*in->at == 'e' || *in->at == 'E')) {
        in->at++;
        if (in->at < in->end && (*in->at == '+' || *in->at == '-'))
            in->at++;
        if (!digits(in))
            return false;
    }
    return true;
}

static bool word(struct reader *in, const char *text)
{
    size_t size = strlen(text);
    if ((size_t)(in->end - in->at) < size || memcmp(in->at, text, size))
        return false;
    in->at += size;
    return true;
}

static bool members(struct reader *in, int depth, bool named, char close)
{
    struct span part;
    bool plain;

    if (next(in, close))
        return true;
    do {
        if (named && (!string(in, &part, &plain) || !next(in, ':')))
            return false;
        if (!value(in, depth + 1, &part))
            return false;
    } while (next(in, ','));
    return next(in, close);
}

bool value(struct reader *in, int depth, struct span *found)
{
    struct span inside;
    bool plain, good = false;

    blank(in);
    if (depth > MAX_DEPTH || in->at >= in->end)
        return false;
    found->at = in->at;
    switch (*in->at) {
    case '{':
    case '[':
        good = *in->at++ == '{' ? members(in, depth, true, '}') : members(in, depth, false, ']');
        break;
    case '"':
        good = string(in, &inside, &plain);
        break;
    case 't':
        good = word(in, "true");
        break;
    case 'f':
        good = word(in, "false");
        break;
    case 'n':
        good = word(in, "null");
        break;
    default:
        good = number(in);
    }
    found->size = (size_t)(in->at - found->at);
    return good;
}

bool is(struct span one, const char *text)
{
    return one.size == strlen(text) && !memcmp(one.at, text, one.size);
}
