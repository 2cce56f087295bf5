/* A disk that fails, for LD_PRELOAD: the nth call of some kinds, on paths with a given text in them, returns an error, or
 * writes only half. Every such call is noted in a trace, "name path" a line, so that a test can see what was tried.
 *
 * FAULTY_CALL   names of calls with commas between them: open, mmap, pread, pwritev, pwrite, ftruncate, fallocate, fdatasync, fsync,
 *               mkdir, rename, link, unlink
 * FAULTY_PATH   text that the file's path must contain
 * FAULTY_NTH    which call fails, from 1; that one only, or with a + behind, all from that one on
 * FAULTY_ERRNO  with what; 0: a write is cut in half and reported so
 * FAULTY_TRACE  the trace's path
 * FAULTY_GATE   a path, if the call is to be held up first: it makes FAULTY_GATE.reached and goes on when FAULTY_GATE is there.
 *               With FAULTY_ERRNO 0 a sync is only held up
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int count, held; /* held: by the thread that notes its call: lines stand in the order in which calls are counted */

static void path_of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, size - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

/* Whether a name is one of those between commas. */
static int is_among(const char *name, const char *names) {
    const size_t length = strlen(name);
    for (const char *at = names; (at = strstr(at, name)) != NULL; at += length)
        if ((at == names || at[-1] == ',') && (at[length] == ',' || at[length] == 0)) return 1;
    return 0;
}

/* Whether this call is the one to fail. */
static int hit(const char *call, const char *path) {
    const char *wanted = getenv("FAULTY_CALL"), *text = getenv("FAULTY_PATH"), *trace = getenv("FAULTY_TRACE");
    if (!wanted || !text || !trace || !strstr(path, text)) return 0;
    char line[4200];
    int (*next)(const char *, int, ...) = real("open");
    while (__sync_lock_test_and_set(&held, 1)) sched_yield();
    const int out = next(trace, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    snprintf(line, sizeof line, "%s %s\n", call, path);
    if (out >= 0) {
        if (write(out, line, strlen(line)) < 0) abort();
        close(out);
    }
    const int counts = is_among(call, wanted), number = counts ? ++count : 0;
    __sync_lock_release(&held);
    if (!counts) return 0;
    const char *nth = getenv("FAULTY_NTH");
    const int from = atoi(nth);
    return strchr(nth, '+') ? number >= from : number == from;
}

static int hit_fd(const char *call, int fd) {
    char path[4096];
    path_of(fd, path, sizeof path);
    return hit(call, path);
}

static int error(void) { return atoi(getenv("FAULTY_ERRNO")); }

static void wait_at_gate(void) {
    const char *gate = getenv("FAULTY_GATE");
    if (!gate) return;
    char reached[4096];
    snprintf(reached, sizeof reached, "%s.reached", gate);
    close(open(reached, O_CREAT | O_WRONLY, 0600));
    for (int looks = 0; looks < 60000 && access(gate, F_OK) != 0; ++looks) usleep(1000);
}

static ssize_t write_parts(const char *name, int fd, const struct iovec *parts, int part_count, off_t offset) {
    ssize_t (*next)(int, const struct iovec *, int, off_t) = real(name);
    if (hit_fd("pwritev", fd)) {
        if (error() != 0) {
            errno = error();
            return -1;
        }
        struct iovec some[1024]; /* IOV_MAX */
        size_t left = 1;
        int some_count = 0;
        for (int i = 0; i < part_count; ++i) left += parts[i].iov_len / 2;
        for (; left > 0 && some_count < part_count; ++some_count) {
            some[some_count] = parts[some_count];
            if (some[some_count].iov_len > left) some[some_count].iov_len = left;
            left -= some[some_count].iov_len;
        }
        return next(fd, some, some_count, offset);
    }
    return next(fd, parts, part_count, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int part_count, off_t offset) {
    return write_parts("pwritev", fd, parts, part_count, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int part_count, off_t offset) {
    return write_parts("pwritev64", fd, parts, part_count, offset);
}

static ssize_t write_at(const char *name, int fd, const void *data, size_t size, off_t offset) {
    ssize_t (*next)(int, const void *, size_t, off_t) = real(name);
    if (hit_fd("pwrite", fd)) {
        if (error() != 0) {
            errno = error();
            return -1;
        }
        size = (size + 1) / 2;
    }
    return next(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return write_at("pwrite", fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return write_at("pwrite64", fd, data, size, offset); }

static int sync_it(const char *name, int fd) {
    int (*next)(int) = real(name);
    if (hit_fd(name, fd)) {
        wait_at_gate();
        errno = error();
        if (errno != 0) return -1;
    }
    return next(fd);
}

int fdatasync(int fd) { return sync_it("fdatasync", fd); }
int fsync(int fd) { return sync_it("fsync", fd); }

static int hit_at(const char *call, int directory_fd, const char *name) {
    char path[8192] = "";
    if (*name != '/' && directory_fd != AT_FDCWD) {
        path_of(directory_fd, path, 4096);
        strcat(path, "/");
    }
    strncat(path, name, 4000);
    if (!hit(call, path)) return 0;
    errno = error();
    return 1;
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    int (*next)(int, const char *, int, const char *, unsigned) = real("renameat2");
    return hit_at("rename", to_fd, to) ? -1 : next(from_fd, from, to_fd, to, flags);
}
int renameat(int from_fd, const char *from, int to_fd, const char *to) { return renameat2(from_fd, from, to_fd, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    int (*next)(int, const char *, int, const char *, int) = real("linkat");
    return hit_at("link", to_fd, to) ? -1 : next(from_fd, from, to_fd, to, flags);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int directory_fd, const char *name, int flags) {
    int (*next)(int, const char *, int) = real("unlinkat");
    return hit_at("unlink", directory_fd, name) ? -1 : next(directory_fd, name, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int mkdirat(int directory_fd, const char *name, mode_t mode) {
    int (*next)(int, const char *, mode_t) = real("mkdirat");
    return hit_at("mkdir", directory_fd, name) ? -1 : next(directory_fd, name, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int openat(int directory_fd, const char *name, int flags, ...) {
    int (*next)(int, const char *, int, ...) = real("openat");
    MODE(flags)
    return hit_at("open", directory_fd, name) ? -1 : next(directory_fd, name, flags, mode);
}
int open(const char *path, int flags, ...) {
    MODE(flags)
    return openat(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return openat(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat64(int directory_fd, const char *name, int flags, ...) {
    MODE(flags)
    return openat(directory_fd, name, flags | O_LARGEFILE, mode);
}

void *mmap(void *where, size_t bytes, int protection, int flags, int fd, off_t offset) {
    void *(*next)(void *, size_t, int, int, int, off_t) = real("mmap");
    if (fd >= 0 && hit_fd("mmap", fd)) {
        errno = error();
        return MAP_FAILED;
    }
    return next(where, bytes, protection, flags, fd, offset);
}
void *mmap64(void *where, size_t bytes, int protection, int flags, int fd, off_t offset) {
    return mmap(where, bytes, protection, flags, fd, offset);
}

ssize_t pread(int fd, void *data, size_t bytes, off_t offset) {
    ssize_t (*next)(int, void *, size_t, off_t) = real("pread");
    if (hit_fd("pread", fd)) {
        errno = error();
        return -1;
    }
    return next(fd, data, bytes, offset);
}
ssize_t pread64(int fd, void *data, size_t bytes, off_t offset) { return pread(fd, data, bytes, offset); }

int ftruncate(int fd, off_t bytes) {
    int (*next)(int, off_t) = real("ftruncate");
    if (hit_fd("ftruncate", fd)) {
        errno = error();
        return -1;
    }
    return next(fd, bytes);
}
int ftruncate64(int fd, off_t bytes) { return ftruncate(fd, bytes); }

static int allocate(const char *name, int fd, off_t offset, off_t size) {
    int (*next)(int, off_t, off_t) = real(name);
    return hit_fd("fallocate", fd) ? error() : next(fd, offset, size);
}

int posix_fallocate(int fd, off_t offset, off_t size) { return allocate("posix_fallocate", fd, offset, size); }
int posix_fallocate64(int fd, off_t offset, off_t size) { return allocate("posix_fallocate64", fd, offset, size); }
