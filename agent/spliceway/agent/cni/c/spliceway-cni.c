// SPDX-License-Identifier: Apache-2.0
// The CNI plugin: hands what the runtime says to the agent of this node, and prints what comes back.
//
// It stands last in a chain. Each pod starts it several times, so it is a static program without libraries, and decides as little as
// it can: the environment and the document on stdin go to the agent as they came; of the document it reads only what it must know
// itself. These are prevResult, which ADD prints byte for byte as it came, and what to do when no agent answers.
//
// Request:  "SPLCNI1\n", length of the environment, length of the document (4 bytes each, little endian), the environment's
//           NAME=VALUE\0 …, the document.
// Answer:   status (1 byte: 0 done, 1 failed), 3 zeros, length (4 bytes, little endian), and so many bytes: for failed a CNI error.
//
// Everything that is read has a bound, and everything that is waited for a deadline. Spec: containernetworking/cni SPEC.md 1.1.0.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef SPLICEWAY_VERSION
#define SPLICEWAY_VERSION "unknown"
#endif

#define MAX_DOCUMENT (1u << 20)
#define MAX_ENVIRONMENT (64u << 10)
#define MAX_ANSWER (64u << 10)
#define MAX_DEPTH 64
#define MAX_SECONDS 600
#define DEFAULT_MS 15000
#define STDIN_MS 30000
#define RETRY_MS 20

// Codes of the spec, section «Error».
enum { INCOMPATIBLE = 1, BAD_ENVIRONMENT = 4, IO_FAILURE = 5, BAD_JSON = 6, BAD_CONFIG = 7, TRY_AGAIN = 11, NOT_AVAILABLE = 50 };

struct span {
    const char *at;
    size_t size;
};

struct reader {
    const char *at, *end;
};

struct config {
    struct span version, previous, exempt;
    char socket[sizeof(((struct sockaddr_un *)0)->sun_path)];
    int64_t timeout;
    bool allow;
};

static const char *const VERSIONS[] = {"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};
static const char *const VARIABLES[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"};
static char document[MAX_DOCUMENT + 1], environment[MAX_ENVIRONMENT], answer[MAX_ANSWER];
static char version[16] = "1.0.0";

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static int64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (int64_t)at.tv_sec * 1000 + at.tv_nsec / 1000000;
}

static void print(const char *data, size_t size)
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

// `message` and `details` are texts of this file and of strerror: nothing in them needs an escape.
static _Noreturn void fail(int code, const char *message, const char *details)
{
    char text[512];
    int size = snprintf(text, sizeof(text), "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"spliceway-cni: %s\",\"details\":\"%s\"}\n",
                        version, code, message, details);
    print(text, size < (int)sizeof(text) ? (size_t)size : sizeof(text) - 1);
    _exit(1);
}

// ---- JSON (RFC 8259), read strictly ----

static void blank(struct reader *in)
{
    while (in->at < in->end && (*in->at == ' ' || *in->at == '\t' || *in->at == '\n' || *in->at == '\r'))
        in->at++;
}

static bool next(struct reader *in, char wanted)
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

// What stands between the quotes. `plain`: without escapes.
static bool string(struct reader *in, struct span *found, bool *plain)
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

static bool value(struct reader *in, int depth, struct span *found);

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

static bool value(struct reader *in, int depth, struct span *found)
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

static bool is(struct span one, const char *text)
{
    return one.size == strlen(text) && !memcmp(one.at, text, one.size);
}

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

// ---- the plugin's part of the configuration ----

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
    for (size_t i = 0; i < COUNT(VERSIONS); i++)
        if (is(told, VERSIONS[i])) {
            memcpy(version, told.at, told.size);
            version[told.size] = 0;
            return;
        }
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

static void read_config(struct config *config, size_t size)
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

// Whether the pod's namespace is in exemptNamespaces.
static bool is_exempt(const struct config *config)
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

// ---- stdin, environment ----

static size_t read_document(void)
{
    int64_t deadline = now() + STDIN_MS;
    size_t size = 0;

    for (;;) {
        struct pollfd waited = {.fd = STDIN_FILENO, .events = POLLIN};
        int64_t left = deadline - now();
        int ready = poll(&waited, 1, left > 0 ? (int)left : 0);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            fail(IO_FAILURE, "the configuration did not come", ready ? strerror(errno) : "stdin stays open");
        ssize_t got = read(STDIN_FILENO, document + size, sizeof(document) - size);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got < 0)
            fail(IO_FAILURE, "the configuration can't be read", strerror(errno));
        if (!got)
            return size;
        size += (size_t)got;
        if (size > MAX_DOCUMENT)
            fail(BAD_JSON, "the configuration is larger than 1 MiB", "");
    }
}

static size_t take_environment(void)
{
    size_t size = 0;
    for (size_t i = 0; i < COUNT(VARIABLES); i++) {
        const char *text = getenv(VARIABLES[i]);
        if (!text)
            continue;
        size_t name = strlen(VARIABLES[i]), length = strlen(text);
        if (length > MAX_ENVIRONMENT || size + name + length + 2 > MAX_ENVIRONMENT)
            fail(BAD_ENVIRONMENT, "the variables are larger than 64 KiB", VARIABLES[i]);
        memcpy(environment + size, VARIABLES[i], name);
        environment[size + name] = '=';
        memcpy(environment + size + name + 1, text, length + 1);
        size += name + length + 2;
    }
    return size;
}

static void need(const char *variable)
{
    const char *text = getenv(variable);
    if (!text || !*text)
        fail(BAD_ENVIRONMENT, "a variable is missing", variable);
}

// ---- talking to the agent; each gives NULL, or why it failed ----

static const char ENDED[] = "the agent ended meanwhile";

static const char *broken(void)
{
    return errno == ECONNRESET || errno == EPIPE ? ENDED : strerror(errno);
}

static const char *await(int agent, short events, int64_t deadline)
{
    for (;;) {
        struct pollfd waited = {.fd = agent, .events = events};
        int64_t left = deadline - now();
        if (left <= 0)
            return "the agent is too slow";
        int ready = poll(&waited, 1, (int)left);
        if (ready > 0)
            return NULL;
        if (ready < 0 && errno != EINTR)
            return strerror(errno);
    }
}

static const char *dial(const struct config *config, bool patient, int64_t deadline, int *agent)
{
    struct sockaddr_un there = {.sun_family = AF_UNIX};
    const char *why;

    memcpy(there.sun_path, config->socket, sizeof(there.sun_path));
    *agent = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (*agent < 0)
        return strerror(errno);
    while (connect(*agent, (struct sockaddr *)&there, sizeof(there))) {
        bool absent = errno == ENOENT || errno == ECONNREFUSED;
        if (!absent && errno != EAGAIN && errno != EINTR)
            return strerror(errno);
        why = absent ? "no agent runs on this node" : "the agent is too slow";
        // An agent that restarts is back soon. Pods that may start without it need not wait for that.
        if ((absent && !patient) || now() + RETRY_MS >= deadline)
            return why;
        poll(NULL, 0, RETRY_MS);
    }
    return NULL;
}

static const char *send_all(int agent, const void *data, size_t size, int64_t deadline)
{
    const char *at = data, *why;
    while (size) {
        ssize_t done = send(agent, at, size, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && errno == EAGAIN) {
            if ((why = await(agent, POLLOUT, deadline)))
                return why;
            continue;
        }
        if (done < 0)
            return broken();
        at += done;
        size -= (size_t)done;
    }
    return NULL;
}

static const char *receive_all(int agent, void *data, size_t size, int64_t deadline)
{
    char *at = data;
    const char *why;
    while (size) {
        ssize_t got = recv(agent, at, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN) {
            if ((why = await(agent, POLLIN, deadline)))
                return why;
            continue;
        }
        if (got < 0)
            return broken();
        if (!got)
            return ENDED;
        at += got;
        size -= (size_t)got;
    }
    return NULL;
}

static void put_length(unsigned char *at, size_t length)
{
    for (int i = 0; i < 4; i++)
        at[i] = (unsigned char)(length >> (8 * i));
}

static const char *ask_once(int agent, size_t variables, size_t size, int64_t deadline, bool *failed, size_t *told)
{
    unsigned char head[16] = "SPLCNI1\n", back[8];
    const char *why;

    put_length(head + 8, variables);
    put_length(head + 12, size);
    if ((why = send_all(agent, head, sizeof(head), deadline)) || (why = send_all(agent, environment, variables, deadline)) ||
        (why = send_all(agent, document, size, deadline)) || (why = receive_all(agent, back, sizeof(back), deadline)))
        return why;
    *told = back[4] | (size_t)back[5] << 8 | (size_t)back[6] << 16 | (size_t)back[7] << 24;
    if (back[0] > 1 || back[1] || back[2] || back[3] || *told > MAX_ANSWER)
        return "the answer of the agent can't be understood";
    *failed = back[0];
    return receive_all(agent, answer, *told, deadline);
}

// An agent that ends is followed by another one, which is asked again: nothing of this is worse for being done twice.
static const char *ask(const struct config *config, bool patient, size_t variables, size_t size, bool *failed, size_t *told)
{
    int64_t deadline = now() + config->timeout;
    const char *why;
    int agent = -1;

    for (;;) {
        if (!(why = dial(config, patient, deadline, &agent)))
            why = ask_once(agent, variables, size, deadline, failed, told);
        if (why != ENDED || !patient || now() + RETRY_MS >= deadline)
            return why;
        close(agent);
        poll(NULL, 0, RETRY_MS);
    }
}

static void print_versions(void)
{
    print("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[", 43);
    for (size_t i = 0; i < COUNT(VERSIONS); i++) {
        char text[16];
        int size = snprintf(text, sizeof(text), "%s\"%s\"", i ? "," : "", VERSIONS[i]);
        print(text, (size_t)size);
    }
    print("]}\n", 3);
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--version")) {
        print("spliceway-cni " SPLICEWAY_VERSION "\n", sizeof("spliceway-cni " SPLICEWAY_VERSION "\n") - 1);
        return 0;
    }
    need("CNI_COMMAND");
    const char *command = getenv("CNI_COMMAND");
    if (!strcmp(command, "VERSION")) {
        print_versions();
        return 0;
    }
    bool add = !strcmp(command, "ADD"), check = !strcmp(command, "CHECK"), del = !strcmp(command, "DEL");
    bool status = !strcmp(command, "STATUS");
    if (!add && !check && !del && !status && strcmp(command, "GC"))
        fail(BAD_ENVIRONMENT, "CNI_COMMAND is none of ADD, DEL, CHECK, GC, STATUS and VERSION", "");
    if (add || check || del) {
        need("CNI_CONTAINERID");
        need("CNI_IFNAME");
    }
    if (add || check)
        need("CNI_NETNS");

    struct config config = {0};
    size_t size = read_document(), variables = take_environment(), told = 0;
    read_config(&config, size);
    if ((add || check) && !config.previous.at)
        fail(BAD_CONFIG, "there is no prevResult: it can't be the first plugin of a chain", "");

    bool exempt = is_exempt(&config), lenient = (add || check) && (exempt || config.allow), failed = false;
    const char *why = ask(&config, !(exempt && lenient), variables, size, &failed, &told);
    if ((why || failed) && !lenient && !(del && config.allow)) {
        if (why)
            fail(status ? NOT_AVAILABLE : TRY_AGAIN, why, config.socket[0] ? "see the log of the agent of this node" : "");
        print(answer, told);
        return 1;
    }
    if (add) {
        print(config.previous.at, config.previous.size);
        print("\n", 1);
    }
    return 0;
}
