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
// `json` and `config` read the document, `agent` asks, `output` is all that the runtime gets.
//
// Everything that is read has a bound, and everything that is waited for a deadline. Spec: containernetworking/cni SPEC.md 1.1.0.
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "config.h"
#include "output.h"

#ifndef SPLICEWAY_VERSION
#define SPLICEWAY_VERSION "unknown"
#endif

#define MAX_DOCUMENT (1u << 20)
#define MAX_ENVIRONMENT (64u << 10)
#define STDIN_MS 30000

static const char *const VARIABLES[] = {"CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"};
static char document[MAX_DOCUMENT + 1], environment[MAX_ENVIRONMENT];
static struct answer answer;

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
    struct question asked = {.environment = environment, .document = document};
    asked.size = read_document();
    asked.variables = take_environment();
    read_config(&config, document, asked.size);
    if ((add || check) && !config.previous.at)
        fail(BAD_CONFIG, "there is no prevResult: it can't be the first plugin of a chain", "");

    bool exempt = is_exempt(&config), lenient = (add || check) && (exempt || config.allow);
    const char *why = ask(&config, !(exempt && lenient), &asked, &answer);
    if ((why || answer.failed) && !lenient && !(del && config.allow)) {
        if (why)
            fail(status ? NOT_AVAILABLE : TRY_AGAIN, why, config.socket[0] ? "see the log of the agent of this node" : "");
        print(answer.text, answer.size);
        return 1;
    }
    if (add) {
        print(config.previous.at, config.previous.size);
        print("\n", 1);
    }
    return 0;
}
