// Reading log files that were changed at random: never a byte read out of bounds, never a frame whose checksum is wrong.
//
//   scan_fuzz SECONDS SEED
//
// Each round changes a valid file (bits, bytes, runs, lengths, the end), and scans it in a block of memory of exactly its size,
// so that AddressSanitizer sees a read of even one byte behind it. A frame that is found must be valid by a second, plainer
// reading of the format, and in a file whose checksums were not made anew it must be one that was there before.
// Exit code 1 with a line beginning with FAILED otherwise.
#include <map>
#include <memory>

#include "log_scan.hpp"
#include "stress.hpp"

using namespace stress;

namespace {

constexpr uint64_t START_POSITION = 0x123456789000;
constexpr uint32_t EPOCH = 7;
constexpr uint32_t ROW_BYTES = 40;

using Image = std::vector<char>;
using Frames = std::map<uint64_t, std::string>;  // offset -> bytes

void add_frame(Image &image, Frames &frames, FrameKind kind, const std::string &payload, uint32_t row_count = 0,
               uint32_t row_bytes = 0, uint64_t first_sequence = 0) {
    FrameHeader header{};
    header.magic = FRAME_MAGIC;
    header.kind = kind;
    header.payload_bytes = static_cast<uint32_t>(payload.size());
    header.frame_bytes = static_cast<uint32_t>(align8(FRAME_HEADER_BYTES + payload.size()));
    header.position = START_POSITION + image.size();
    header.epoch = EPOCH;
    header.first_sequence = first_sequence;
    header.row_count = row_count;
    header.row_bytes = row_bytes;
    header.durable_position = START_POSITION;
    header.crc = frame_crc(header, payload.data());
    std::string bytes(header.frame_bytes, '\0');
    std::memcpy(bytes.data(), &header, sizeof header);
    std::memcpy(bytes.data() + sizeof header, payload.data(), payload.size());
    frames[image.size()] = bytes;
    image.insert(image.end(), bytes.begin(), bytes.end());
}

Image valid_image(Frames &frames, Random &random) {
    Image image(LOG_HEADER_BYTES);
    add_frame(image, frames, FRAME_TOPIC, "{\"name\":\"points\"}", 0, ROW_BYTES, 1);
    uint64_t sequence = 1;
    for (int turn = 0; turn < 40; ++turn) {
        const uint64_t count = 1 + random.below(turn % 8 == 0 ? 200 : 12);
        std::string rows(count * ROW_BYTES, '\0');
        for (uint64_t row = 0; row < count; ++row, ++sequence) {
            std::memcpy(rows.data() + row * ROW_BYTES, &sequence, 8);
            fill_payload(rows.data() + row * ROW_BYTES + 16, ROW_BYTES, sequence);
        }
        add_frame(image, frames, FRAME_ROWS, rows, static_cast<uint32_t>(count), ROW_BYTES, sequence - count);
        if (turn % 10 == 3) add_frame(image, frames, FRAME_MARK, "");
        if (turn % 10 == 7) add_frame(image, frames, FRAME_GAP, std::string(2 * sizeof(LostRange) + 8 * random.below(20), '\0'), 2);
    }
    add_frame(image, frames, FRAME_CLOSE, "");
    image.resize(image.size() + 512);  // what is not written yet
    return image;
}

uint64_t any_frame(const Frames &frames, Random &random) {
    auto at = frames.begin();
    std::advance(at, static_cast<long>(random.below(frames.size())));
    return at->first;
}

uint32_t interesting(Random &random, uint32_t now) {
    static constexpr uint32_t VALUES[] = {0, 1, 7, 8, 63, 64, 65, 71, 72, GROUP_BYTES_MAX - 1, GROUP_BYTES_MAX, GROUP_BYTES_MAX + 8,
                                          0x7fffffff, 0x80000000, 0xffffffc0, 0xfffffff8, 0xffffffff};
    switch (random.below(4)) {
    case 0: return now + static_cast<uint32_t>(random.below(33)) - 16;
    case 1: return static_cast<uint32_t>(random.next());
    default: return VALUES[random.below(sizeof VALUES / sizeof *VALUES)];
    }
}

// Lengths of a frame as somebody would set them who can also make checksums: they must be refused, or lead nowhere.
void forge_lengths(Image &image, uint64_t offset, Random &random, bool with_checksum) {
    FrameHeader header;
    std::memcpy(&header, image.data() + offset, sizeof header);
    uint32_t *const fields[] = {&header.frame_bytes, &header.payload_bytes, &header.row_count, &header.row_bytes};
    for (uint32_t *field : fields)
        if (random.below(2) == 0) *field = interesting(random, *field);
    if (random.below(2) == 0) header.frame_bytes = static_cast<uint32_t>(align8(FRAME_HEADER_BYTES + uint64_t{header.payload_bytes}));
    if (random.below(4) == 0) header.kind = static_cast<uint8_t>(random.below(8));
    std::memcpy(image.data() + offset, &header, sizeof header);
    if (with_checksum && header.frame_bytes >= FRAME_HEADER_BYTES && header.frame_bytes <= image.size() - offset) {
        header.crc = crc32c_portable(0, image.data() + offset + 8, header.frame_bytes - 8);
        std::memcpy(image.data() + offset + offsetof(FrameHeader, crc), &header.crc, 4);
    }
}

// Change the image; true when checksums were made anew, so that frames may be valid which were not there before.
bool mutate(Image &image, const Frames &frames, Random &random) {
    bool forged = false;
    for (uint64_t left = 1 + random.below(4); left != 0; --left) {
        const uint64_t at = LOG_HEADER_BYTES + random.below(image.size() - LOG_HEADER_BYTES);
        switch (random.below(7)) {
        case 0: image[at] = static_cast<char>(image[at] ^ (1 << random.below(8))); break;
        case 1: image[at] = static_cast<char>(random.next()); break;
        case 2: {  // a run of zeros, or of what stands elsewhere: a torn or a misdirected write
            const uint64_t length = 1 + random.below(image.size() - at), from = random.below(image.size() - length + 1);
            if (random.below(2) == 0)
                std::memset(image.data() + at, 0, length);
            else
                std::memmove(image.data() + at, image.data() + from, length);
            break;
        }
        case 3: forge_lengths(image, any_frame(frames, random), random, false); break;
        case 4:
            forge_lengths(image, any_frame(frames, random), random, true);
            forged = true;
            break;
        case 5: {  // one bit of a frame's header
            char *byte = image.data() + any_frame(frames, random) + random.below(FRAME_HEADER_BYTES);
            *byte = static_cast<char>(*byte ^ (1 << random.below(8)));
            break;
        }
        default: break;
        }
    }
    return forged;
}

void check_found(const char *base, uint64_t limit, uint64_t offset, const Frames &frames, bool forged) {
    FrameHeader header;
    if (offset % 8 != 0 || offset > limit || limit - offset < FRAME_HEADER_BYTES)
        fail("a frame was found at %llu of %llu bytes", static_cast<unsigned long long>(offset), static_cast<unsigned long long>(limit));
    std::memcpy(&header, base + offset, sizeof header);
    if (header.frame_bytes > limit - offset || uint64_t{header.payload_bytes} + FRAME_HEADER_BYTES > header.frame_bytes)
        fail("a frame reaches beyond the file");
    if (crc32c_portable(0, base + offset + 8, header.frame_bytes - 8) != header.crc) fail("a frame with a wrong checksum was found");
    if (header.position != START_POSITION + offset || header.epoch != EPOCH) fail("a frame was found where it does not belong");
    if (header.kind == FRAME_ROWS && uint64_t{header.row_count} * header.row_bytes > header.payload_bytes)
        fail("a frame's rows reach beyond its payload");
    if (header.kind == FRAME_GAP && uint64_t{header.row_count} * sizeof(LostRange) > header.payload_bytes)
        fail("a gap's entries reach beyond its payload");
    if (forged) return;
    const auto known = frames.find(offset);
    if (known == frames.end() || known->second != std::string(base + offset, header.frame_bytes))
        fail("a frame was found at %llu that was never written", static_cast<unsigned long long>(offset));
}

struct Counts {
    uint64_t rounds = 0, found = 0, whole = 0, forged = 0;
};

void round(const Image &valid, const Frames &frames, Random &random, Counts &counts) {
    Image image = valid;
    const bool forged = mutate(image, frames, random);
    uint64_t limit = image.size();
    if (random.below(2) == 0) limit = random.below(limit + 1);
    const size_t shift = random.below(8);  // a map begins on a page, a buffer anywhere
    const std::unique_ptr<char[]> block(new char[shift + limit]);
    char *base = block.get() + shift;
    std::memcpy(base, image.data(), limit);
    const LogBytes log{base, limit, START_POSITION, EPOCH};

    std::vector<FrameEntry> found;
    const uint64_t end = scan_frames(log, LOG_HEADER_BYTES, found);
    uint64_t expected = LOG_HEADER_BYTES;
    for (const FrameEntry &frame : found) {
        if (frame.offset != expected) fail("frames do not follow each other");
        check_found(base, limit, frame.offset, frames, forged);
        expected += align8(FRAME_HEADER_BYTES + frame.payload_bytes);
    }
    if (end != expected) fail("the scan ended elsewhere than its last frame");
    counts.found += found.size();
    counts.whole += found.size() == frames.size();

    // Starts that come from a damaged file's own words may be anything.
    const uint64_t starts[] = {0, end, end + 8, random.below(image.size() + 64), random.next(), UINT64_MAX - random.below(200)};
    for (uint64_t start : starts) {
        const uint64_t at = find_frame(log, start);
        if (at == limit) continue;
        if (at < start) fail("a frame was found before the place where the search began");
        check_found(base, limit, at, frames, forged);
        ++counts.found;
    }
    for (uint64_t start : starts) {
        FrameHeader header;
        if (read_frame(log, start, header)) check_found(base, limit, start, frames, forged);
    }
    ++counts.rounds;
    counts.forged += forged;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) fail("usage: scan_fuzz SECONDS SEED");
    alarm(120);  // whatever hangs dies of it
    Random random(std::strtoull(argv[2], nullptr, 10));
    const int64_t end_ns = monotonic_ns() + static_cast<int64_t>(std::atof(argv[1]) * 1e9);
    Counts counts;
    while (monotonic_ns() < end_ns) {
        Frames frames;
        const Image valid = valid_image(frames, random);
        for (int turn = 0; turn < 100 && monotonic_ns() < end_ns; ++turn) round(valid, frames, random, counts);
    }
    std::printf("{\"rounds\": %llu, \"found\": %llu, \"whole\": %llu, \"forged\": %llu}\n", static_cast<unsigned long long>(counts.rounds),
                static_cast<unsigned long long>(counts.found), static_cast<unsigned long long>(counts.whole),
                static_cast<unsigned long long>(counts.forged));
    return 0;
}
