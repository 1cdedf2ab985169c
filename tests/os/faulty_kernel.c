/* A kernel with other abilities than the one that runs the tests: put in front of libc with LD_PRELOAD.

   FAULTS is a list of words:
     gso=ERRNO       large sends (with a UDP_SEGMENT control message) fail, after the first FAULTS_AFTER of them
     gso=ignored     a kernel before 4.18, which knows no UDP_SEGMENT and sends one datagram
     nobatch         no sendmmsg and no recvmmsg: ENOSYS
     nogro           UDP_GRO cannot be set: ENOPROTOOPT
     eintr           every other call is interrupted
   FAULTS_LOG names a file that gets a line per message: "N C V" for the lengths of name and control and the vectors. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { SOL_UDP_ = 17, UDP_SEGMENT_ = 103, UDP_GRO_ = 104 };

static int wanted(const char *word) {
    const char *faults = getenv("FAULTS");
    return faults != NULL && strstr(faults, word) != NULL;
}

static int interrupted(void) {
    static int calls;
    return wanted("eintr") && calls++ % 2 == 0;
}

static void note(socklen_t name, size_t control, size_t vectors) {
    const char *log = getenv("FAULTS_LOG");
    FILE *file = log != NULL ? fopen(log, "a") : NULL;
    if (file != NULL) {
        fprintf(file, "%u %zu %zu\n", name, control, vectors);
        fclose(file);
    }
}

static int is_large(const struct msghdr *message) {
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c != NULL; c = CMSG_NXTHDR((struct msghdr *) message, c))
        if (c->cmsg_level == SOL_UDP_ && c->cmsg_type == UDP_SEGMENT_)
            return 1;
    return 0;
}

static ssize_t one(int fd, const struct msghdr *message, int flags) {
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    static int large;
    const char *after = getenv("FAULTS_AFTER"), *gso;
    note(message->msg_namelen, message->msg_controllen, message->msg_iovlen);
    if (is_large(message) && wanted("gso=")) {
        if (wanted("gso=ignored")) {
            struct msghdr bare = *message;
            bare.msg_control = NULL;
            bare.msg_controllen = 0;
            return real(fd, &bare, flags);
        }
        gso = strstr(getenv("FAULTS"), "gso=") + 4;
        if (large++ >= (after != NULL ? atoi(after) : 0)) {
            errno = atoi(gso);
            return -1;
        }
    }
    return real(fd, message, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    return one(fd, message, flags);
}

ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t name) {
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    note(name, 0, 1);
    return real(fd, data, size, flags, to, name);
}

ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *name) {
    ssize_t (*real)(int, void *, size_t, int, struct sockaddr *, socklen_t *) = dlsym(RTLD_NEXT, "recvfrom");
    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    return real(fd, data, size, flags, from, name);
}

int sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags) {
    unsigned int i;
    if (wanted("nobatch") || interrupted()) {
        errno = wanted("nobatch") ? ENOSYS : EINTR;
        return -1;
    }
    for (i = 0; i < count; i++) {
        ssize_t sent = one(fd, &messages[i].msg_hdr, flags);
        if (sent < 0)
            return i ? (int) i : -1;
        messages[i].msg_len = (unsigned int) sent;
    }
    return (int) count;
}

ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
    ssize_t (*real)(int, struct msghdr *, int) = dlsym(RTLD_NEXT, "recvmsg");
    if (interrupted()) {
        errno = EINTR;
        return -1;
    }
    return real(fd, message, flags);
}

int recvmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags, struct timespec *timeout) {
    int (*real)(int, struct mmsghdr *, unsigned int, int, struct timespec *) = dlsym(RTLD_NEXT, "recvmmsg");
    if (wanted("nobatch") || interrupted()) {
        errno = wanted("nobatch") ? ENOSYS : EINTR;
        return -1;
    }
    return real(fd, messages, count, flags, timeout);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t size) {
    int (*real)(int, int, int, const void *, socklen_t) = dlsym(RTLD_NEXT, "setsockopt");
    if (wanted("nogro") && level == SOL_UDP_ && name == UDP_GRO_) {
        errno = ENOPROTOOPT;
        return -1;
    }
    return real(fd, level, name, value, size);
}
