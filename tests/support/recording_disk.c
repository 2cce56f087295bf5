/* A disk that keeps a journal, for LD_PRELOAD: every change to the files and names under one directory, with its bytes, in order.
 * `power_cut.py` reads the journal and rebuilds what a power cut may leave.
 *
 * RECORDED_ROOT     the directory
 * RECORDED_JOURNAL  where the journal goes; not under the root
 *
 * 1. One call at a time: what the journal says happened in that order. A call that failed is not in it.
 * 2. Stores into a shared mapping are found by comparing, at the next call of any kind, and stand before that call.
 *    What is stored while a sync is under way stands behind it, as if it were not synced.
 * 3. Nothing is really synced: the machine that runs this does not lose its power.
 * 4. Files are named by their inodes, and held open, so that no inode comes twice.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, SECTOR = 512, PATH = 4096, INODES_MAX = 1 << 16, MAPS_MAX = 64, HELD_MAX = 1 << 15 };

/* In the journal: this, then both names (no zero behind them), then the bytes. `power_cut.py` has the same. */
struct entry {
    char kind; /* C create, D mkdir, W write, M mapped write, T truncate, A allocate, P punch, S sync, Y sync all, R rename, L link,
                  U unlink, K rmdir, N note */
    char unused[3];
    uint32_t name_bytes, to_name_bytes;
    uint32_t unused_too;
    uint64_t inode, directory, to_directory, offset, length, data_bytes;
};

struct map {
    char *base, *shadow;
    size_t bytes;
    uint64_t inode, offset;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static dev_t device;
static uint64_t inodes[INODES_MAX];
static struct map maps[MAPS_MAX];
static int map_count;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void give_up(const char *why) {
    dprintf(2, "recording_disk: %s: %s\n", why, strerror(errno));
    abort();
}

static void put(const void *data, size_t bytes) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = real("write");
    for (const char *from = data; bytes > 0;) {
        const ssize_t written = next(journal, from, bytes);
        if (written <= 0) give_up("journal");
        from += written;
        bytes -= (size_t)written;
    }
}

static void record(struct entry entry, const char *name, const char *to_name, const void *data) {
    entry.name_bytes = name ? (uint32_t)strlen(name) : 0;
    entry.to_name_bytes = to_name ? (uint32_t)strlen(to_name) : 0;
    put(&entry, sizeof entry);
    put(name, entry.name_bytes);
    put(to_name, entry.to_name_bytes);
    if (data) put(data, entry.data_bytes);
}

/* --- which inodes are ours */

static uint64_t *place_of(uint64_t inode) {
    uint64_t at = inode * 0x9E3779B97F4A7C15u % INODES_MAX;
    while (inodes[at] && inodes[at] != inode) at = (at + 1) % INODES_MAX;
    return &inodes[at];
}

static int is_ours(const struct stat *found) { return journal >= 0 && found->st_dev == device && *place_of(found->st_ino); }

/* From now on this inode is ours. The descriptor that holds it is never closed. */
static void adopt(int directory_fd, const char *path, uint64_t inode) {
    static int held;
    int (*next)(int, const char *, int, ...) = real("openat");
    if (++held > HELD_MAX || next(directory_fd, path, O_PATH | O_NOFOLLOW | O_CLOEXEC) < 0) give_up(path);
    *place_of(inode) = inode;
}

static int adopt_found(const char *path, const struct stat *found, int kind, struct FTW *where) {
    (void)kind, (void)where;
    adopt(AT_FDCWD, path, found->st_ino);
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *root = getenv("RECORDED_ROOT"), *path = getenv("RECORDED_JOURNAL");
    struct stat found;
    struct rlimit limit;
    if (!root || !path) return;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    if (stat(root, &found) != 0) give_up(root);
    device = found.st_dev;
    if (nftw(root, adopt_found, 64, FTW_PHYS) != 0) give_up(root);
    int (*next)(const char *, int, ...) = real("open");
    journal = next(path, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    if (journal < 0) give_up(path);
}

/* The directory that a path lies in, if it is ours, and the name there. */
static int place_in(int directory_fd, const char *path, uint64_t *directory, const char **name) {
    char parent[PATH];
    struct stat found;
    const char *slash = strrchr(path, '/');
    if (journal < 0 || strlen(path) >= sizeof parent) return 0;
    *name = slash ? slash + 1 : path;
    snprintf(parent, sizeof parent, "%.*s", slash ? (int)(slash - path + 1) : 1, slash ? path : ".");
    if (fstatat(directory_fd, parent, &found, 0) != 0 || !is_ours(&found)) return 0;
    *directory = found.st_ino;
    return 1;
}

static int file_of(int fd, uint64_t *inode) {
    struct stat found;
    if (journal < 0 || fstat(fd, &found) != 0 || !is_ours(&found)) return 0;
    *inode = found.st_ino;
    return 1;
}

/* --- shared mappings */

static void collect_sectors(struct map *map, size_t at, size_t end) {
    char now[PAGE];
    for (size_t first = at; first < end;) {
        const size_t bytes = end - first < SECTOR ? end - first : SECTOR;
        if (memcmp(map->base + first, map->shadow + first, bytes) != 0) {
            memcpy(now, map->base + first, bytes); /* once: it may be changing */
            memcpy(map->shadow + first, now, bytes);
            record((struct entry){.kind = 'M', .inode = map->inode, .offset = map->offset + first, .data_bytes = bytes}, NULL,
                   NULL, now);
        }
        first += bytes;
    }
}

static void collect_map(struct map *map) {
    for (size_t at = 0; at < map->bytes; at += PAGE) {
        const size_t bytes = map->bytes - at < PAGE ? map->bytes - at : PAGE;
        if (memcmp(map->base + at, map->shadow + at, bytes) != 0) collect_sectors(map, at, at + bytes);
    }
}

/* Every change begins so and ends with `unlock`. */
static void lock_and_collect(void) {
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < map_count; ++i) collect_map(&maps[i]);
}

static void unlock(void) { pthread_mutex_unlock(&mutex); }

static void note_written(uint64_t inode, uint64_t offset, const char *data, size_t bytes) {
    record((struct entry){.kind = 'W', .inode = inode, .offset = offset, .data_bytes = bytes}, NULL, NULL, data);
    for (int i = 0; i < map_count; ++i) {
        struct map *map = &maps[i];
        if (map->inode != inode) continue;
        for (size_t at = 0; at < bytes; ++at) {
            const uint64_t place = offset + at;
            if (place >= map->offset && place < map->offset + map->bytes) map->shadow[place - map->offset] = data[at];
        }
    }
}

static void *map_it(const char *name, void *where, size_t bytes, int protection, int flags, int fd, off_t offset) {
    void *(*next)(void *, size_t, int, int, int, off_t) = real(name);
    uint64_t inode;
    if (!(flags & MAP_SHARED) || !(protection & PROT_WRITE) || fd < 0 || !file_of(fd, &inode))
        return next(where, bytes, protection, flags, fd, offset);
    lock_and_collect();
    void *const base = next(where, bytes, protection, flags, fd, offset);
    if (base != MAP_FAILED) {
        if (map_count == MAPS_MAX) give_up("too many maps");
        struct map *map = &maps[map_count++];
        *map = (struct map){base, malloc(bytes), bytes, inode, (uint64_t)offset};
        memcpy(map->shadow, base, bytes);
    }
    unlock();
    return base;
}

void *mmap(void *where, size_t bytes, int protection, int flags, int fd, off_t offset) {
    return map_it("mmap", where, bytes, protection, flags, fd, offset);
}
void *mmap64(void *where, size_t bytes, int protection, int flags, int fd, off_t offset) {
    return map_it("mmap64", where, bytes, protection, flags, fd, offset);
}

int munmap(void *base, size_t bytes) {
    int (*next)(void *, size_t) = real("munmap");
    pthread_mutex_lock(&mutex);
    for (int i = 0; i < map_count; ++i) {
        if (maps[i].base != base) continue;
        collect_map(&maps[i]);
        free(maps[i].shadow);
        maps[i] = maps[--map_count];
        break;
    }
    const int result = next(base, bytes);
    unlock();
    return result;
}

int msync(void *base, size_t bytes, int flags) {
    lock_and_collect();
    for (int i = 0; i < map_count; ++i)
        if ((flags & MS_SYNC) && (char *)base >= maps[i].base && (char *)base < maps[i].base + maps[i].bytes)
            record((struct entry){.kind = 'S', .inode = maps[i].inode}, NULL, NULL, NULL);
    unlock();
    (void)bytes;
    return 0;
}

/* --- contents */

static ssize_t write_it(int fd, const struct iovec *parts, int part_count, off_t offset, uint64_t inode) {
    ssize_t (*next)(int, const struct iovec *, int, off_t) = real("pwritev");
    ssize_t (*next_here)(int, const struct iovec *, int) = real("writev");
    size_t bytes = 0;
    lock_and_collect();
    const ssize_t written = offset < 0 ? next_here(fd, parts, part_count) : next(fd, parts, part_count, offset);
    const int error = errno;
    if (written > 0) {
        char *data = malloc((size_t)written);
        for (int i = 0; i < part_count && bytes < (size_t)written; ++i) {
            const size_t left = (size_t)written - bytes, take = parts[i].iov_len < left ? parts[i].iov_len : left;
            memcpy(data + bytes, parts[i].iov_base, take);
            bytes += take;
        }
        const uint64_t begin = offset < 0 ? (uint64_t)(lseek(fd, 0, SEEK_CUR) - written) : (uint64_t)offset;
        note_written(inode, begin, data, bytes);
        free(data);
    }
    unlock();
    errno = error;
    return written;
}

ssize_t pwritev(int fd, const struct iovec *parts, int part_count, off_t offset) {
    ssize_t (*next)(int, const struct iovec *, int, off_t) = real("pwritev");
    uint64_t inode;
    return file_of(fd, &inode) ? write_it(fd, parts, part_count, offset, inode) : next(fd, parts, part_count, offset);
}
ssize_t pwritev64(int fd, const struct iovec *parts, int part_count, off_t offset) {
    return pwritev(fd, parts, part_count, offset);
}
ssize_t writev(int fd, const struct iovec *parts, int part_count) {
    ssize_t (*next)(int, const struct iovec *, int) = real("writev");
    uint64_t inode;
    return file_of(fd, &inode) ? write_it(fd, parts, part_count, -1, inode) : next(fd, parts, part_count);
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    ssize_t (*next)(int, const void *, size_t, off_t) = real("pwrite");
    const struct iovec part = {(void *)data, bytes};
    uint64_t inode;
    return file_of(fd, &inode) ? write_it(fd, &part, 1, offset, inode) : next(fd, data, bytes, offset);
}
ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t offset) { return pwrite(fd, data, bytes, offset); }
ssize_t write(int fd, const void *data, size_t bytes) {
    ssize_t (*next)(int, const void *, size_t) = real("write");
    const struct iovec part = {(void *)data, bytes};
    uint64_t inode;
    return file_of(fd, &inode) ? write_it(fd, &part, 1, -1, inode) : next(fd, data, bytes);
}

int ftruncate(int fd, off_t bytes) {
    int (*next)(int, off_t) = real("ftruncate");
    uint64_t inode;
    if (!file_of(fd, &inode)) return next(fd, bytes);
    lock_and_collect();
    const int result = next(fd, bytes);
    if (result == 0) record((struct entry){.kind = 'T', .inode = inode, .length = (uint64_t)bytes}, NULL, NULL, NULL);
    unlock();
    return result;
}
int ftruncate64(int fd, off_t bytes) { return ftruncate(fd, bytes); }

int truncate(const char *path, off_t bytes) {
    int (*next)(const char *, int, ...) = real("open");
    const int fd = next(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    const int result = ftruncate(fd, bytes);
    close(fd);
    return result;
}
int truncate64(const char *path, off_t bytes) { return truncate(path, bytes); }

int fallocate(int fd, int mode, off_t offset, off_t bytes) {
    int (*next)(int, int, off_t, off_t) = real("fallocate");
    uint64_t inode;
    if (!file_of(fd, &inode)) return next(fd, mode, offset, bytes);
    lock_and_collect();
    const int result = next(fd, mode, offset, bytes);
    if (result == 0 && (mode & FALLOC_FL_PUNCH_HOLE)) {
        record((struct entry){.kind = 'P', .inode = inode, .offset = (uint64_t)offset, .length = (uint64_t)bytes}, NULL, NULL, NULL);
        for (int i = 0; i < map_count; ++i) /* nobody punches what he has mapped; were it so, the next call would find it */
            if (maps[i].inode == inode) collect_map(&maps[i]);
    } else if (result == 0 && !(mode & FALLOC_FL_KEEP_SIZE)) {
        record((struct entry){.kind = 'A', .inode = inode, .offset = (uint64_t)offset, .length = (uint64_t)bytes}, NULL, NULL, NULL);
    }
    unlock();
    return result;
}
int fallocate64(int fd, int mode, off_t offset, off_t bytes) { return fallocate(fd, mode, offset, bytes); }
int posix_fallocate(int fd, off_t offset, off_t bytes) {
    int (*next)(int, off_t, off_t) = real("posix_fallocate");
    uint64_t inode;
    return !file_of(fd, &inode) ? next(fd, offset, bytes) : fallocate(fd, 0, offset, bytes) == 0 ? 0 : errno;
}
int posix_fallocate64(int fd, off_t offset, off_t bytes) { return posix_fallocate(fd, offset, bytes); }

static int sync_it(const char *name, int fd) {
    int (*next)(int) = real(name);
    uint64_t inode;
    if (!file_of(fd, &inode)) return next(fd);
    lock_and_collect();
    record((struct entry){.kind = *name == 's' ? 'Y' : 'S', .inode = inode}, NULL, NULL, NULL);
    unlock();
    return 0;
}

int fsync(int fd) { return sync_it("fsync", fd); }
int fdatasync(int fd) { return sync_it("fdatasync", fd); }
int syncfs(int fd) { return sync_it("syncfs", fd); }

/* --- names */

static int open_it(int directory_fd, const char *path, int flags, mode_t mode) {
    int (*next)(int, const char *, int, ...) = real("openat");
    uint64_t directory;
    const char *name;
    struct stat found;
    if (!(flags & (O_CREAT | O_TRUNC)) || !place_in(directory_fd, path, &directory, &name))
        return next(directory_fd, path, flags, mode);
    lock_and_collect();
    const int was_there = fstatat(directory_fd, path, &found, 0) == 0;
    const int fd = next(directory_fd, path, flags, mode);
    const int error = errno;
    if (fd >= 0 && fstat(fd, &found) == 0) {
        if (!was_there) {
            adopt(directory_fd, path, found.st_ino);
            record((struct entry){.kind = 'C', .inode = found.st_ino, .directory = directory}, name, NULL, NULL);
        } else if (flags & O_TRUNC) {
            record((struct entry){.kind = 'T', .inode = found.st_ino}, NULL, NULL, NULL);
        }
    }
    unlock();
    errno = error;
    return fd;
}

#define MODE(flags, after) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list more; \
        va_start(more, after); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_it(AT_FDCWD, path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_it(AT_FDCWD, path, flags | O_LARGEFILE, mode);
}
int openat(int directory_fd, const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_it(directory_fd, path, flags, mode);
}
int openat64(int directory_fd, const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_it(directory_fd, path, flags | O_LARGEFILE, mode);
}

int mkdirat(int directory_fd, const char *path, mode_t mode) {
    int (*next)(int, const char *, mode_t) = real("mkdirat");
    uint64_t directory;
    const char *name;
    struct stat found;
    if (!place_in(directory_fd, path, &directory, &name)) return next(directory_fd, path, mode);
    lock_and_collect();
    const int result = next(directory_fd, path, mode), error = errno;
    if (result == 0 && fstatat(directory_fd, path, &found, 0) == 0) {
        adopt(directory_fd, path, found.st_ino);
        record((struct entry){.kind = 'D', .inode = found.st_ino, .directory = directory}, name, NULL, NULL);
    }
    unlock();
    errno = error;
    return result;
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    int (*next)(int, const char *, int, const char *, unsigned) = real("renameat2");
    uint64_t directory, to_directory;
    const char *name, *to_name;
    struct stat found;
    if (!place_in(from_fd, from, &directory, &name) || !place_in(to_fd, to, &to_directory, &to_name))
        return next(from_fd, from, to_fd, to, flags);
    lock_and_collect();
    const int known = fstatat(from_fd, from, &found, AT_SYMLINK_NOFOLLOW) == 0;
    const int result = next(from_fd, from, to_fd, to, flags), error = errno;
    if (result == 0 && known)
        record((struct entry){.kind = 'R', .inode = found.st_ino, .directory = directory, .to_directory = to_directory}, name,
               to_name, NULL);
    unlock();
    errno = error;
    return result;
}
int renameat(int from_fd, const char *from, int to_fd, const char *to) { return renameat2(from_fd, from, to_fd, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    int (*next)(int, const char *, int, const char *, int) = real("linkat");
    uint64_t directory;
    const char *name;
    struct stat found;
    if (!place_in(to_fd, to, &directory, &name)) return next(from_fd, from, to_fd, to, flags);
    lock_and_collect();
    const int result = next(from_fd, from, to_fd, to, flags), error = errno;
    if (result == 0 && fstatat(to_fd, to, &found, AT_SYMLINK_NOFOLLOW) == 0)
        record((struct entry){.kind = 'L', .inode = found.st_ino, .directory = directory}, name, NULL, NULL);
    unlock();
    errno = error;
    return result;
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int directory_fd, const char *path, int flags) {
    int (*next)(int, const char *, int) = real("unlinkat");
    uint64_t directory;
    const char *name;
    if (!place_in(directory_fd, path, &directory, &name)) return next(directory_fd, path, flags);
    lock_and_collect();
    const int result = next(directory_fd, path, flags), error = errno;
    if (result == 0)
        record((struct entry){.kind = flags & AT_REMOVEDIR ? 'K' : 'U', .directory = directory}, name, NULL, NULL);
    unlock();
    errno = error;
    return result;
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

/* --- the test's own words: what it is about to do, what was acknowledged */

void recording_note(const char *text) {
    lock_and_collect();
    if (journal >= 0) record((struct entry){.kind = 'N', .data_bytes = strlen(text)}, NULL, NULL, text);
    unlock();
}
