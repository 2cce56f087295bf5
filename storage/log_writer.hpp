// Appending to the log: frames gathered into groups, one pwritev a group, fdatasync when the caller says so.
//
// 1. One thread at a time (the owner: the journal, or Python under the interpreter's lock) appends. Any thread may `sync`, also
//    while the owner appends; the spare-file calls, and what the getters say, are for any thread too.
// 2. A group never spans two files: a file with less than a whole group's room is closed and the next one begun.
// 3. The first failed write or sync poisons the writer: every later call returns the same error, nothing is retried, and
//    `durable_position` never moves again. (A failed fsync may have dropped the dirty pages; trying again would lie.)
// 4. Files come ready-made from a keeper thread (`add_spare`), allocated or recycled, so that no write here has to wait for
//    the file system to find room. A spare takes its final name only after its header is on the disk, and never that of a
//    file which is there: a paused writer that wakes after another took over must not replace the other's file.
// 5. `sync_mutex_` is held over every sync and over the change to another file. All syncs of a file go through one open file
//    description, and the kernel reports a failed write-back there to the first of them only: whoever comes second must not take
//    its own success for the truth before the first has poisoned the writer.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "atomics.hpp"
#include "log_format.hpp"

namespace ringmain {

inline constexpr int GROUP_FRAMES_MAX = 256;
inline constexpr uint64_t MAPPED_GROUP_BYTES_MAX = 16 << 10;  // a larger group is copied faster by the kernel than through page faults
inline constexpr int NEEDS_FILE = -1;  // `append_row`: call `make_room` first

struct LogTopic {
    std::string schema_json;
    uint32_t row_bytes;
    uint64_t next_sequence;     // of the next row to be appended
    int64_t last_timestamp_ns;
};

struct LogFailure {
    int error = 0;              // errno; 0 while all is well
    const char *doing = "";     // "write", "sync", …
    uint64_t file_number = 0;
    uint64_t offset = 0;
};

struct SpareFile {
    int fd;
    std::string name;
};

class LogWriter {
  public:
    LogWriter(int directory_fd, uint64_t log_id, uint32_t epoch, const std::string &bus, uint64_t next_file_number,
              uint64_t start_position, uint64_t previous_end, uint64_t file_bytes, bool sync_files,
              bool map_small_groups = false)
        : log_id_(log_id), bus_(bus), directory_fd_(directory_fd), file_bytes_(file_bytes), sync_files_(sync_files),
          map_small_groups_(map_small_groups), epoch_(epoch), file_number_(next_file_number - 1),
          start_position_(start_position), offset_(previous_end),
          wants_spare_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
        start_position_ -= previous_end;  // as if the file before were still open and full: the first group rotates
        durable_position_ = written_position_ = position();
        iovecs_.reserve(2 * GROUP_FRAMES_MAX);
        headers_.resize(GROUP_FRAMES_MAX);
    }

    ~LogWriter() { let_go(); }  // without a lock: in a forked child a thread that is not there may hold it

    LogWriter(const LogWriter &) = delete;
    LogWriter &operator=(const LogWriter &) = delete;

    void add_topic(const std::string &schema_json, uint32_t row_bytes, uint64_t next_sequence, int64_t last_timestamp_ns) {
        topics_.push_back({schema_json, row_bytes, next_sequence, last_timestamp_ns});
    }

    // --- the owner ---------------------------------------------------------------------------------------------------

    bool in_use = false;  // for an owner that is several threads in turn: one is in a call without the interpreter's lock

    // Begin the first file. 0 or an errno.
    int open_first() { return rotate(); }

    // How many rows of this topic still fit into the group being gathered; 0 when it must be written first.
    uint64_t group_room_rows(uint32_t topic) const {
        if (frame_count_ == GROUP_FRAMES_MAX || group_bytes_ + FRAME_HEADER_BYTES + 8 > GROUP_BYTES_MAX) return 0;
        return (GROUP_BYTES_MAX - 8 - group_bytes_ - FRAME_HEADER_BYTES) / topics_[topic].row_bytes;
    }

    // The most rows that `begin_batch` finds room for.
    uint64_t batch_rows_max(uint32_t topic) const {
        const uint64_t group_rows = (GROUP_BYTES_MAX - 8 - FRAME_HEADER_BYTES) / topics_[topic].row_bytes;
        return (file_bytes_ - start_bytes_) / GROUP_BYTES_MAX * group_rows - group_rows;
    }

    // Be sure that `count` rows, added in groups as large as they can be, go into one file: what ends in the middle of a batch is
    // cut off there when the log is opened. The group must be empty. May wait as `make_room` does. 0 or an errno.
    int begin_batch(uint32_t topic, uint64_t count) {
        if (const int error = failed(); error != 0) return error;  // then the group is not empty
        const uint64_t group_rows = group_room_rows(topic);
        if (count <= group_rows) return 0;  // add_rows looks for room itself
        const uint64_t group_count = (count + group_rows - 1) / group_rows;
        return file_bytes_ - offset_ < (group_count + 1) * GROUP_BYTES_MAX ? rotate() : 0;
    }

    // Add `count` contiguous rows to the group, or rows that delete. They must stay as they are until `write_group` returns.
    // continues: they count only together with the rows that are added next.
    int add_rows(uint32_t topic, const char *rows, uint64_t count, bool tombstones = false, bool continues = false) {
        LogTopic &to = topics_[topic];
        int64_t last_timestamp_ns, first_timestamp_ns;
        std::memcpy(&first_timestamp_ns, rows + 8, 8);
        std::memcpy(&last_timestamp_ns, rows + (count - 1) * to.row_bytes + 8, 8);
        const int error = add_frame(tombstones ? FRAME_TOMBSTONES : FRAME_ROWS, topic, to.next_sequence,
                                    static_cast<uint32_t>(count), to.row_bytes, first_timestamp_ns, rows,
                                    static_cast<uint32_t>(count * to.row_bytes), continues ? CONTINUES : uint8_t{0});
        if (error == 0) {
            to.next_sequence += count;
            to.last_timestamp_ns = last_timestamp_ns;
        }
        return error;
    }

    // Append one row and write it, at the least cost. 0, an errno, or NEEDS_FILE: the current file is full. It never waits, neither
    // for a file nor for the disk, so that it may be called with the interpreter's lock held. EINVAL: the row is not the next one.
    int append_row(uint32_t topic, const char *row, bool tombstone = false) {
        LogTopic &to = topics_[topic];
        if (const int error = failed(); error != 0) return error;
        if (std::memcmp(row, &to.next_sequence, sizeof to.next_sequence) != 0) return EINVAL;
        if (frame_count_ == 0 && file_bytes_ - offset_ < GROUP_BYTES_MAX) return NEEDS_FILE;
        if (map_ == nullptr || frame_count_ != 0 || to.row_bytes > MAPPED_GROUP_BYTES_MAX - FRAME_HEADER_BYTES) {
            const int error = add_rows(topic, row, 1, tombstone);
            return error != 0 ? error : write_group();
        }
        int64_t timestamp_ns;
        std::memcpy(&timestamp_ns, row + 8, sizeof timestamp_ns);
        FrameHeader header;
        encode_header(header, tombstone ? FRAME_TOMBSTONES : FRAME_ROWS, topic, to.next_sequence, 1, to.row_bytes, timestamp_ns,
                      row, to.row_bytes);
        std::memcpy(map_ + offset_, &header, FRAME_HEADER_BYTES);
        std::memcpy(map_ + offset_ + FRAME_HEADER_BYTES, row, to.row_bytes);
        ++to.next_sequence;
        to.last_timestamp_ns = timestamp_ns;
        offset_ += header.frame_bytes;
        note_written(header.frame_bytes);
        return 0;
    }

    // Begin the next file if the current one is full: what `append_row` may need. May wait for a spare and for the disk. 0 or an errno.
    int make_room() {
        if (const int error = write_group(); error != 0) return error;
        return file_bytes_ - offset_ < GROUP_BYTES_MAX ? rotate() : 0;
    }

    // Write the gathered frames: small groups into the mapped file, others with one call. 0 or an errno.
    int write_group() {
        if (const int error = failed(); error != 0) return error;
        if (frame_count_ == 0) return 0;
        const uint64_t bytes = group_bytes_;
        iovec *at = iovecs_.data();
        int left = static_cast<int>(iovecs_.size());
        uint64_t offset = offset_ - bytes;
        if (map_ != nullptr && bytes <= MAPPED_GROUP_BYTES_MAX)
            for (; left > 0; offset += at->iov_len, ++at, --left) std::memcpy(map_ + offset, at->iov_base, at->iov_len);
        while (left > 0) {
            const ssize_t written = pwritev(fd_, at, left, static_cast<off_t>(offset));
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) return fail(written < 0 ? errno : EIO, "write", offset);
            offset += static_cast<uint64_t>(written);
            size_t done = static_cast<size_t>(written);
            for (; left > 0 && done >= at->iov_len; ++at, --left) done -= at->iov_len;
            if (left > 0) {
                at->iov_base = static_cast<char *>(at->iov_base) + done;
                at->iov_len -= done;
            }
        }
        iovecs_.clear();
        frame_count_ = 0;
        group_bytes_ = 0;
        note_written(bytes);
        return 0;
    }

    // Make everything written so far durable, from any thread; not with the interpreter's lock held. 0 or an errno.
    int sync() {
        const uint64_t wanted = load_acquire(written_position_);  // sync WRITTEN
        std::lock_guard lock(sync_mutex_);
        if (const int error = failed(); error != 0) return error;
        if (load_relaxed(durable_position_) >= wanted) return 0;  // another sync took this along, or there was nothing
        const uint64_t position = load_acquire(written_position_);  // sync WRITTEN: what came meanwhile goes along
        if ((earlier_unsynced_ ? syncfs(directory_fd_) : fdatasync(fd_)) != 0) return fail(errno, "sync", position - start_position_);
        earlier_unsynced_ = false;
        store_release(durable_position_, position);
        store_relaxed(sync_count_, load_relaxed(sync_count_) + 1);
        return 0;
    }

    // Leave word of what is durable, so that later damage below this place can be told from a torn tail.
    int write_mark() {
        if (durable_position() != position() || marked_position_ == position()) return failed();
        int error = add_frame(FRAME_MARK, 0, 0, 0, 0, 0, nullptr, 0);
        if (error == 0) error = write_group();
        marked_position_ = position();
        return error;
    }

    // Write what is left, sync, and end the log in good order. 0 or an errno.
    int finish() {
        int error = write_group();
        if (error == 0) error = sync();
        if (error == 0) error = add_frame(FRAME_CLOSE, 0, 0, 0, 0, 0, nullptr, 0);
        if (error == 0) error = write_group();
        if (error == 0) error = sync();
        return error;
    }

    // Let go of the files. Nobody may append meanwhile; later calls that need a file fail with EBADF.
    void close_files() {
        std::scoped_lock lock(sync_mutex_, spares_mutex_);
        let_go();
        spare_error_ = EBADF;
    }

    uint64_t written_position() const { return load_acquire(written_position_); }  // sync WRITTEN
    uint64_t durable_position() const { return load_acquire(durable_position_); }
    uint64_t file_number() const { return file_number_; }
    uint64_t offset() const { return offset_; }  // the owner's
    uint64_t written_bytes() const { return load_relaxed(written_bytes_); }
    uint64_t sync_count() const { return load_relaxed(sync_count_); }
    bool is_mapped() const { return map_ != nullptr; }  // the owner's
    LogFailure failure() const {
        std::lock_guard lock(failure_mutex_);
        return failure_;
    }
    const LogTopic &topic(uint32_t index) const { return topics_[index]; }
    int fail(int error, const char *doing, uint64_t offset) { return fail(error, doing, offset, file_number_); }
    int fail(int error, const char *doing, uint64_t offset, uint64_t file_number) {
        std::lock_guard lock(failure_mutex_);
        if (failure_.error == 0) failure_ = {error, doing, file_number, offset};
        store_release(failed_, failure_.error);
        return failure_.error;
    }

    // --- the keeper, from any thread ---------------------------------------------------------------------------------

    // Takes ownership of `fd`, which must hold a file of `file_bytes` under `name` in the log's directory.
    void add_spare(int fd, const std::string &name) {
        std::lock_guard lock(spares_mutex_);
        spares_.push_back({fd, name});
        spare_error_ = 0;
        spares_changed_.notify_one();
    }

    // The keeper could not make a file: the owner fails with this errno if it needs one now.
    void refuse_spare(int error) {
        std::lock_guard lock(spares_mutex_);
        spare_error_ = error;
        spares_changed_.notify_one();
    }

    size_t spare_count() {
        std::lock_guard lock(spares_mutex_);
        return spares_.size();
    }

    // Readable whenever a spare was taken or is waited for. For poll(2).
    int wants_spare_fd() const { return wants_spare_fd_; }

  private:
    void let_go() {
        if (map_ != nullptr) munmap(std::exchange(map_, nullptr), file_bytes_);
        if (fd_ >= 0) close(std::exchange(fd_, -1));
        if (wants_spare_fd_ >= 0) close(std::exchange(wants_spare_fd_, -1));
        for (const auto &spare : spares_) close(spare.fd);
        spares_.clear();
    }

    uint64_t position() const { return start_position_ + offset_; }  // where the next frame goes; gathered ones included
    int failed() const { return load_relaxed(failed_); }

    void note_written(uint64_t bytes) {
        store_relaxed(written_bytes_, load_relaxed(written_bytes_) + bytes);
        store_release(written_position_, position());  // sync WRITTEN: the bytes first, then the word that they are there
    }

    void encode_header(FrameHeader &header, FrameKind kind, uint32_t topic, uint64_t first_sequence, uint32_t row_count,
                       uint32_t row_bytes, int64_t first_timestamp_ns, const void *payload, uint32_t payload_bytes,
                       uint8_t flags = 0) const {
        header.magic = FRAME_MAGIC;
        header.frame_bytes = static_cast<uint32_t>(align8(FRAME_HEADER_BYTES + payload_bytes));
        header.kind = kind;
        header.flags = flags;
        header.topic = static_cast<uint16_t>(topic);
        header.position = position();
        header.first_sequence = first_sequence;
        header.row_count = row_count;
        header.epoch = epoch_;
        header.durable_position = kind == FRAME_CLOSE ? position() : load_relaxed(durable_position_);
        header.first_timestamp_ns = first_timestamp_ns;
        header.row_bytes = row_bytes;
        header.payload_bytes = payload_bytes;
        header.crc = frame_crc(header, payload);
    }

    int add_frame(FrameKind kind, uint32_t topic, uint64_t first_sequence, uint32_t row_count, uint32_t row_bytes,
                  int64_t first_timestamp_ns, const void *payload, uint32_t payload_bytes, uint8_t flags = 0) {
        if (const int error = failed(); error != 0) return error;
        if (frame_count_ == 0 && file_bytes_ - offset_ < GROUP_BYTES_MAX)
            if (const int error = rotate(); error != 0) return error;
        FrameHeader &header = headers_[static_cast<size_t>(frame_count_++)];
        encode_header(header, kind, topic, first_sequence, row_count, row_bytes, first_timestamp_ns, payload, payload_bytes,
                      flags);
        iovecs_.push_back({&header, FRAME_HEADER_BYTES});
        if (payload_bytes != 0) iovecs_.push_back({const_cast<void *>(payload), payload_bytes});
        static char zeros[8];
        const size_t padding = header.frame_bytes - FRAME_HEADER_BYTES - payload_bytes;
        if (padding != 0) iovecs_.push_back({zeros, padding});
        group_bytes_ += header.frame_bytes;
        offset_ += header.frame_bytes;
        return 0;
    }

    int take_spare(SpareFile &spare) {
        const uint64_t one = 1;
        std::unique_lock lock(spares_mutex_);
        while (spares_.empty()) {
            if (spare_error_ != 0) return spare_error_;
            (void)!write(wants_spare_fd_, &one, sizeof one);
            spares_changed_.wait_for(lock, std::chrono::seconds(1));
        }
        spare = std::move(spares_.front());
        spares_.pop_front();
        (void)!write(wants_spare_fd_, &one, sizeof one);
        return 0;
    }

    // Close the current file and begin the next: header and topics written and synced, then renamed, then the directory synced.
    // Before that the current file is synced, whoever else is syncing it.
    int rotate() {
        if (const int error = failed(); error != 0) return error;
        if (fd_ >= 0 && sync_files_)
            if (const int error = sync(); error != 0) return error;
        SpareFile spare;
        if (const int error = take_spare(spare); error != 0) return fail(error, "create", 0, file_number_ + 1);

        std::vector<char> start(LOG_HEADER_BYTES);
        LogFileHeader header{};
        std::memcpy(header.magic, LOG_MAGIC, 8);
        header.version = LOG_VERSION;
        header.byte_order = BYTE_ORDER_MARK;
        header.log_id = log_id_;
        header.file_number = file_number_ + 1;
        header.start_position = position();
        header.previous_end = offset_;
        header.epoch = epoch_;
        header.header_bytes = LOG_HEADER_BYTES;
        timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        header.created_ns = now.tv_sec * 1'000'000'000 + now.tv_nsec;
        header.file_bytes = file_bytes_;
        std::snprintf(header.bus, sizeof header.bus, "%s", bus_.c_str());
        for (size_t index = 0; index < topics_.size(); ++index) append_topic_frame(start, header.start_position, index);
        header.start_bytes = start.size();
        header.crc = log_header_crc(header);
        std::memcpy(start.data(), &header, sizeof header);

        for (size_t done = 0; done < start.size();) {
            const ssize_t written = pwrite(spare.fd, start.data() + done, start.size() - done, static_cast<off_t>(done));
            if (written < 0 && errno == EINTR) continue;
            if (written <= 0) return close_spare(spare, written < 0 ? errno : EIO, "write");
            done += static_cast<size_t>(written);
        }
        if (sync_files_ && fdatasync(spare.fd) != 0) return close_spare(spare, errno, "sync");
        flock(spare.fd, LOCK_UN);  // readers may map it from now on (sync LOGFILE: the keeper locked it while it was a spare)
        char name[32];
        std::snprintf(name, sizeof name, "%010llu.log", static_cast<unsigned long long>(header.file_number));
        if (rename_new(spare.name.c_str(), name) != 0) return close_spare(spare, errno, "rename");
        if (sync_files_ && fsync(directory_fd_) != 0) return close_spare(spare, errno, "sync of the directory");

        char *const map = map_small_groups_ ? map_for_writing(spare.fd) : nullptr;
        char *const old_map = std::exchange(map_, map);
        int old_fd;
        {
            std::lock_guard lock(sync_mutex_);  // rule 5
            old_fd = std::exchange(fd_, spare.fd);
            file_number_ = header.file_number;
            start_position_ = header.start_position;
            offset_ = start_bytes_ = start.size();
            store_release(written_position_, position());
            if (sync_files_)
                store_release(durable_position_, position());
            else
                earlier_unsynced_ = true;
        }
        if (old_map != nullptr) munmap(old_map, file_bytes_);
        if (old_fd >= 0) close(old_fd);
        return 0;
    }

    // Map a file whose every block is reserved, or null: then writes go through pwritev, which reports a full disk as an error.
    // A store into a mapped page for which the file system finds no block is a SIGBUS instead. ext4, xfs and tmpfs keep what
    // fallocate reserved. Others copy on write (btrfs, overlays), or promise no room at all (networks).
    char *map_for_writing(int fd) const {
        constexpr unsigned long EXT4 = 0xef53, XFS = 0x58465342, TMPFS = 0x01021994;
        struct statfs system;
        if (fstatfs(fd, &system) != 0) return nullptr;
        const auto magic = static_cast<unsigned long>(system.f_type);
        if (magic != EXT4 && magic != XFS && magic != TMPFS) return nullptr;
        void *const map = mmap(nullptr, file_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        return map == MAP_FAILED ? nullptr : static_cast<char *>(map);
    }

    // Give a spare its name; EEXIST where that is taken. File systems without RENAME_NOREPLACE get a link instead.
    int rename_new(const char *from, const char *to) const {
        if (renameat2(directory_fd_, from, directory_fd_, to, RENAME_NOREPLACE) == 0) return 0;
        if (errno != EINVAL && errno != ENOSYS) return -1;
        if (linkat(directory_fd_, from, directory_fd_, to, 0) != 0) return -1;
        return unlinkat(directory_fd_, from, 0);
    }

    int close_spare(const SpareFile &spare, int error, const char *doing) {
        close(spare.fd);
        return fail(error, doing, 0, file_number_ + 1);
    }

    void append_topic_frame(std::vector<char> &start, uint64_t start_position, size_t index) {
        const LogTopic &topic = topics_[index];
        FrameHeader header{};
        header.magic = FRAME_MAGIC;
        header.payload_bytes = static_cast<uint32_t>(topic.schema_json.size());
        header.frame_bytes = static_cast<uint32_t>(align8(FRAME_HEADER_BYTES + topic.schema_json.size()));
        header.kind = FRAME_TOPIC;
        header.topic = static_cast<uint16_t>(index);
        header.position = start_position + start.size();
        header.first_sequence = topic.next_sequence;
        header.epoch = epoch_;
        header.durable_position = durable_position();
        header.first_timestamp_ns = topic.last_timestamp_ns;
        header.row_bytes = topic.row_bytes;
        header.crc = frame_crc(header, topic.schema_json.data());
        const size_t at = start.size();
        start.resize(at + header.frame_bytes);
        std::memcpy(start.data() + at, &header, sizeof header);
        std::memcpy(start.data() + at + sizeof header, topic.schema_json.data(), topic.schema_json.size());
    }

    const uint64_t log_id_;
    const std::string bus_;
    const int directory_fd_;
    const uint64_t file_bytes_;
    const bool sync_files_;
    const bool map_small_groups_;
    const uint32_t epoch_;
    std::vector<LogTopic> topics_;

    std::mutex sync_mutex_;  // taken before `failure_mutex_`
    int fd_ = -1;            // changed by the owner under the mutex
    char *map_ = nullptr;    // of the same file, or null: the owner's
    std::atomic<uint64_t> file_number_;
    uint64_t start_position_;    // as fd_
    uint64_t start_bytes_ = LOG_HEADER_BYTES;  // of the current file: header and topics
    uint64_t offset_;            // of the next frame in the current file; frames gathered but not yet written included
    uint64_t written_position_;  // everything before it is in the system's hands
    uint64_t durable_position_;  // changed under the mutex
    uint64_t marked_position_ = 0;
    uint64_t written_bytes_ = 0, sync_count_ = 0;
    bool earlier_unsynced_ = false;  // files before this one, or their names, may not be on the disk. Under the mutex
    LogFailure failure_;             // written once, under its mutex
    int failed_ = 0;                 // its errno, to be asked without
    mutable std::mutex failure_mutex_;

    std::vector<FrameHeader> headers_;
    std::vector<iovec> iovecs_;
    int frame_count_ = 0;
    uint64_t group_bytes_ = 0;

    std::mutex spares_mutex_;
    std::condition_variable spares_changed_;
    std::deque<SpareFile> spares_;
    int spare_error_ = 0;
    int wants_spare_fd_;
};

}  // namespace ringmain
