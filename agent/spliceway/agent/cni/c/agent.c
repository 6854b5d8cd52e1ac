// SPDX-License-Identifier: Apache-2.0
// Each of these functions gives NULL, or why it failed.
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "output.h"

#define RETRY_MS 20

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

static const char *ask_once(int agent, const struct question *asked, int64_t deadline, struct answer *answer)
{
    unsigned char head[16] = "SPLCNI1\n", back[8];
    const char *why;

    put_length(head + 8, asked->variables);
    put_length(head + 12, asked->size);
    if ((why = send_all(agent, head, sizeof(head), deadline)) ||
        (why = send_all(agent, asked->environment, asked->variables, deadline)) ||
        (why = send_all(agent, asked->document, asked->size, deadline)) ||
        (why = receive_all(agent, back, sizeof(back), deadline)))
        return why;
    answer->size = back[4] | (size_t)back[5] << 8 | (size_t)back[6] << 16 | (size_t)back[7] << 24;
    if (back[0] > 1 || back[1] || back[2] || back[3] || answer->size > MAX_ANSWER)
        return "the answer of the agent can't be understood";
    answer->failed = back[0];
    return receive_all(agent, answer->text, answer->size, deadline);
}

// An agent that ends is followed by another one, which is asked again: nothing of this is worse for being done twice.
const char *ask(const struct config *config, bool patient, const struct question *asked, struct answer *answer)
{
    int64_t deadline = now() + config->timeout;
    const char *why;
    int agent = -1;

    for (;;) {
        if (!(why = dial(config, patient, deadline, &agent)))
            why = ask_once(agent, asked, deadline, answer);
        if (why != ENDED || !patient || now() + RETRY_MS >= deadline)
            return why;
        close(agent);
        poll(NULL, 0, RETRY_MS);
    }
}
