// Reading sstables that were changed at random: never a byte read out of bounds, never a row that was not written.
//
//   table_fuzz SECONDS SEED
//
// Each round changes a valid table, mostly makes its checksums right again, and reads it in a block of memory of exactly its
// size, so that AddressSanitizer sees a read of even one byte behind it. Without new checksums every row that is found must be
// one that was there; a table that is proven sound must give all its rows, in order.
// Exit code 1 with a line beginning with FAILED otherwise.
#include <sys/mman.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "merge.hpp"
#include "sstable_verify.hpp"
#include "sstable_writer.hpp"
#include "stress.hpp"

using namespace stress;

namespace {

constexpr uint32_t ROW_BYTES = 40, BLOCK_ROWS = 3;
constexpr uint64_t ROW_COUNT = 50, SEQUENCE_MAX = UINT64_MAX;
const KeyLayout LAYOUT({{16, 4, KEY_SIGNED}, {20, 7, KEY_BYTES}});

using Image = std::vector<char>;
using Rows = std::set<std::string>;

// "Compressed" blocks: a byte in front.
int compress_block(void *, const char *block, size_t bytes, std::string &out) {
    out.push_back('C');
    out.append(block, bytes);
    return 0;
}

int load_block(void *, TableReader *table, uint64_t block, char *out) {
    const BlockEntry &entry = table->block_entries()[block];
    const uint64_t bytes = table->rows_in(block) * ROW_BYTES;
    const char *stored = table->stored_block(block);
    if (entry.bytes != bytes + 1 || stored[0] != 'C') return -1;
    std::memcpy(out, stored + 1, bytes);
    return 0;
}

Image valid_image(Rows &rows, Random &random, bool compressed) {
    const int fd = memfd_create("table", 0);
    if (fd < 0) fail("memfd_create");
    TableHeader header{};
    std::memcpy(header.magic, TABLE_MAGIC, 8);
    header.version = TABLE_VERSION;
    header.byte_order = TABLE_BYTE_ORDER;
    header.table_number = 7;
    header.row_bytes = ROW_BYTES;
    header.key_bytes = LAYOUT.bytes();
    header.block_rows = BLOCK_ROWS;
    header.compression = compressed ? COMPRESSION_ZSTD : COMPRESSION_NONE;
    ringmain::TableWriter writer(fd, LAYOUT, header, compressed ? compress_block : nullptr, nullptr);
    writer.set_schema("{\"name\":\"points\"}");
    int32_t key = -40;
    for (uint64_t at = 0; at < ROW_COUNT; ++at) {
        char row[ROW_BYTES] = {};
        const uint64_t sequence = 1000 - at;
        if (random.below(3) != 0) key += 1 + static_cast<int32_t>(random.below(5));
        fill_payload(row, ROW_BYTES, sequence);
        std::memcpy(row, &sequence, 8);
        std::memcpy(row + 16, &key, 4);
        std::memcpy(row + 20, "side-A\0", 7);
        const uint8_t tombstone = random.below(4) == 0;
        if (writer.add(row, &tombstone, 1) != 0) fail("a row was refused");
        rows.insert(std::string(row, ROW_BYTES));
    }
    if (writer.finish() != 0) fail("the table was not finished");
    Image image(static_cast<size_t>(lseek(fd, 0, SEEK_END)));
    if (pread(fd, image.data(), image.size(), 0) != static_cast<ssize_t>(image.size())) fail("pread");
    close(fd);
    return image;
}

uint64_t interesting(Random &random, uint64_t now) {
    static constexpr uint64_t VALUES[] = {0, 1, 7, 8, 63, 64, 4095, 4096, 0x7fffffff, 0xffffffff, 0x100000000, 1ull << 58,
                                          (1ull << 58) + 1, 1ull << 63, UINT64_MAX - 63, UINT64_MAX};
    switch (random.below(4)) {
    case 0: return now + random.below(129) - 64;
    case 1: return random.next();
    default: return VALUES[random.below(sizeof VALUES / sizeof *VALUES)];
    }
}

template <typename T> void forge(Image &image, size_t offset, Random &random) {
    if (offset + sizeof(T) > image.size()) return;
    T value;
    std::memcpy(&value, image.data() + offset, sizeof value);
    value = static_cast<T>(interesting(random, value));
    std::memcpy(image.data() + offset, &value, sizeof value);
}

// Change the image: fields where they matter, and bytes anywhere.
void mutate(Image &image, Random &random) {
    for (uint64_t left = 1 + random.below(3); left != 0; --left) {
        if (image.size() < 2 * TABLE_PAGE_BYTES) return;
        const size_t foot = image.size() - TABLE_PAGE_BYTES;
        const size_t at = random.below(image.size());
        switch (random.below(9)) {
        case 0: image[at] = static_cast<char>(image[at] ^ (1 << random.below(8))); break;
        case 1: std::memset(image.data() + at, 0, std::min<size_t>(1 + random.below(300), image.size() - at)); break;
        case 2: forge<uint32_t>(image, 48 + 4 * random.below(4), random); break;                // row_bytes … compression
        case 3: forge<uint64_t>(image, foot + 16 + 8 * random.below(5), random); break;         // counts
        case 4: forge<uint64_t>(image, foot + 88, random); break;                               // bloom_lines
        case 5: forge<uint64_t>(image, foot + 96 + 24 * random.below(6) + 8 * random.below(2), random); break;
        case 6: {  // an entry of the index
            SectionEntry section;
            std::memcpy(&section, image.data() + foot + 96 + 24, sizeof section);
            if (section.offset < foot) forge<uint64_t>(image, section.offset + 8 * random.below(50), random);
            break;
        }
        case 7: {  // anything in a section
            SectionEntry section;
            std::memcpy(&section, image.data() + foot + 96 + 24 * random.below(6), sizeof section);
            if (section.offset < foot) forge<uint64_t>(image, section.offset + 8 * random.below(16), random);
            break;
        }
        default:
            if (random.below(4) == 0) image.resize(random.below(image.size()));
            break;
        }
    }
}

template <typename T> T word_at(const Image &image, size_t offset) {
    T value;
    std::memcpy(&value, image.data() + offset, sizeof value);
    return value;
}

void seal(Image &image, size_t crc_at, size_t from, size_t bytes) {
    const uint32_t crc = crc32c(0, image.data() + from, bytes);
    std::memcpy(image.data() + crc_at, &crc, 4);
}

// Right checksums for blocks, sections, header and footer, as far as they can be found.
void reseal(Image &image, Random &random) {
    if (image.size() < 2 * TABLE_PAGE_BYTES) return;
    const size_t size = image.size(), foot = size - TABLE_PAGE_BYTES;
    const auto index = word_at<uint64_t>(image, foot + 96 + 24), index_bytes = word_at<uint64_t>(image, foot + 96 + 32);
    if (index < size && index_bytes < size)
        for (size_t at = index; at + 24 <= std::min<size_t>(index + index_bytes, size); at += 24) {
            const auto offset = word_at<uint64_t>(image, at);
            const auto bytes = word_at<uint32_t>(image, at + 16);
            if (offset < size && bytes <= size - offset) seal(image, at + 20, offset, bytes);
        }
    for (size_t which = 0; which < 6; ++which) {
        const size_t entry = foot + 96 + 24 * which;
        const auto offset = word_at<uint64_t>(image, entry), bytes = word_at<uint64_t>(image, entry + 8);
        if (offset < size && bytes <= size - offset) seal(image, entry + 16, offset, bytes);
    }
    if (random.below(8) != 0) std::memcpy(image.data() + foot + 16, &size, 8);
    seal(image, TABLE_PAGE_BYTES - 4, 0, TABLE_PAGE_BYTES - 4);
    seal(image, size - 4, foot, TABLE_PAGE_BYTES - 4);
}

struct Counts {
    uint64_t rounds = 0, opened = 0, sound = 0, found = 0;
};

void check_row(const char *row, const Rows &rows, bool forged) {
    if (!forged && rows.count(std::string(row, ROW_BYTES)) == 0) fail("a row was found that was never written");
}

bool prove(TableReader &table) {
    TableProof proof(table);
    if (!proof.prove_sections()) return false;
    std::vector<char> block(uint64_t{BLOCK_ROWS} * ROW_BYTES);
    for (uint64_t number = 0; number < table.footer().block_count; ++number) {
        if (!proof.prove_stored(number)) continue;
        if (!table.compressed()) {
            proof.prove_rows(number, table.stored_block(number));
        } else {
            block.resize(table.rows_in(number) * ROW_BYTES);
            if (load_block(nullptr, &table, number, block.data()) != 0) return false;
            proof.prove_rows(number, block.data());
        }
    }
    proof.finish();
    return proof.found().empty();
}

void look_up(TableReader &table, const uint64_t *key, const Rows &rows, bool forged, Counts &counts) {
    const uint64_t hash = hash_key(key, LAYOUT.words());
    std::vector<char> block;
    uint64_t given = UINT64_MAX;
    for (uint64_t tries = 0; tries <= table.footer().block_count; ++tries) {
        Found found;
        TableDamage damage;
        const Lookup result =
            table.find(key, hash, SEQUENCE_MAX, found, damage, given, given == UINT64_MAX ? nullptr : block.data());
        if (result == Lookup::FOUND) {
            check_row(found.row, rows, forged);
            ++counts.found;
        }
        if (result != Lookup::NEEDS_BLOCK) return;
        given = found.number;
        if (!table.prove_block(given, damage)) return;
        block.resize(table.rows_in(given) * ROW_BYTES);
        if (load_block(nullptr, &table, given, block.data()) != 0) return;
    }
    fail("a lookup asked for more blocks than there are");
}

uint64_t scan(TableReader &table, bool reverse, const Rows &rows, bool forged) {
    uint64_t low[KEY_WORDS_MAX], high[KEY_WORDS_MAX], count = 0;
    std::memcpy(low, table.footer().key_min, sizeof low);
    std::memcpy(high, table.footer().key_max, sizeof high);
    for (const bool bounded : {false, true}) {
        ringmain::Merge merge(ROW_BYTES, LAYOUT.words(), reverse);
        merge.add(std::make_unique<TableSource>(table, bounded ? low : nullptr, bounded ? high : nullptr, reverse, load_block, nullptr));
        merge.begin_scan(SEQUENCE_MAX, true);
        char out[8 * ROW_BYTES];
        uint8_t flags[8];
        count = 0;
        while (const uint64_t filled = merge.fill(out, flags, 8)) {
            for (uint64_t at = 0; at < filled; ++at) check_row(out + at * ROW_BYTES, rows, forged);
            count += filled;
            if (count > table.row_count()) fail("a scan gave more rows than there are");
        }
    }
    return count;
}

void round(const Image &valid, const Rows &rows, Random &random, Counts &counts) {
    Image image = valid;
    mutate(image, random);
    const bool forged = random.below(5) != 0;
    if (forged) reseal(image, random);
    const std::unique_ptr<char[]> block(new char[image.size()]);
    std::memcpy(block.get(), image.data(), image.size());
    ++counts.rounds;
    TableReader table;
    TableDamage damage;
    if (!table.open(block.get(), image.size(), damage)) return;
    const TableHeader &header = table.header();
    if (header.version != TABLE_VERSION || header.byte_order != TABLE_BYTE_ORDER || header.row_bytes != ROW_BYTES ||
        header.key_bytes != LAYOUT.bytes() || header.compression > COMPRESSION_LZ4)
        return;  // the caller refuses it
    table.set_layout(LAYOUT);
    ++counts.opened;
    const bool sound = prove(table);
    counts.sound += sound;
    if (!table.prove_sections(damage)) return;
    for (int32_t number = -45; number < 120; number += 3) {
        char row[ROW_BYTES] = {};
        std::memcpy(row + 16, &number, 4);
        std::memcpy(row + 20, "side-A\0", 7);
        uint64_t key[KEY_WORDS_MAX] = {};
        LAYOUT.encode(row, key);
        look_up(table, key, rows, forged, counts);
    }
    for (const bool reverse : {false, true})
        if (const uint64_t count = scan(table, reverse, rows, forged); sound && count != table.row_count())
            fail("a sound table gave %llu of its rows", static_cast<unsigned long long>(count));
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) fail("usage: table_fuzz SECONDS SEED");
    alarm(300);  // whatever hangs dies of it
    Random random(std::strtoull(argv[2], nullptr, 10));
    Rows rows[2];
    const Image images[2] = {valid_image(rows[0], random, false), valid_image(rows[1], random, true)};
    Counts counts;
    const int64_t end_ns = monotonic_ns() + static_cast<int64_t>(std::atof(argv[1]) * 1e9);
    do {
        const size_t which = random.below(2);
        round(images[which], rows[which], random, counts);
    } while (monotonic_ns() < end_ns);
    std::printf("{\"rounds\": %llu, \"opened\": %llu, \"sound\": %llu, \"found\": %llu}\n",
                static_cast<unsigned long long>(counts.rounds), static_cast<unsigned long long>(counts.opened),
                static_cast<unsigned long long>(counts.sound), static_cast<unsigned long long>(counts.found));
}
