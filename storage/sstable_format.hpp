// The bytes of an sstable. The prose is FORMAT.md, "sstables"; change both together. These values are on disk in the field:
// add new ones, never change or reuse an old one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "crc32c.hpp"
#include "key.hpp"

namespace ringmain {

inline constexpr char TABLE_MAGIC[9] = "RMAINSST";
inline constexpr char TABLE_END_MAGIC[9] = "RMAINEND";
inline constexpr uint32_t TABLE_VERSION = 1;
inline constexpr uint32_t TABLE_BYTE_ORDER = 0x01020304u;
inline constexpr size_t TABLE_PAGE_BYTES = 4096;  // header and footer
inline constexpr uint32_t BLOOM_BITS_PER_KEY = 12;
inline constexpr uint32_t BLOOM_PROBES = 7;
inline constexpr uint32_t BLOOM_LINE_BITS = 512;

enum TableCompression : uint32_t { COMPRESSION_NONE = 0, COMPRESSION_ZSTD = 1, COMPRESSION_LZ4 = 2 };

// Sections behind the data, each at a multiple of 64.
enum TableSection : uint32_t {
    SECTION_KEYS = 0,        // u64[block_count][key_words]: the first row's key of each block
    SECTION_BLOCKS = 1,      // BlockEntry[block_count]
    SECTION_TAGS = 2,        // u8[row_count]: the topmost byte of each row's key hash
    SECTION_BLOOM = 3,       // u64[bloom_lines * 8]
    SECTION_TOMBSTONES = 4,  // u64[(row_count + 63) / 64]: bit r % 64 of word r / 64 says that row r is one; empty without any
    SECTION_SCHEMA = 5,      // JSON
};
inline constexpr uint32_t SECTION_COUNT = 8;  // two are free

struct TableHeader {
    char magic[8];             //   0
    uint32_t version;          //   8
    uint32_t byte_order;       //  12
    uint64_t table_number;     //  16
    uint64_t schema_hash;      //  24
    uint64_t log_id;           //  32
    int64_t created_ns;        //  40
    uint32_t row_bytes;        //  48
    uint32_t key_bytes;        //  52
    uint32_t block_rows;       //  56  of every block but the last
    uint32_t compression;      //  60
    char topic[64];            //  64
    char tail[TABLE_PAGE_BYTES - 128 - 4];
    uint32_t crc;              // 4092  of all before
};
static_assert(sizeof(TableHeader) == TABLE_PAGE_BYTES && offsetof(TableHeader, crc) == 4092);

struct BlockEntry {
    uint64_t offset;          // in the file
    uint64_t first_sequence;  // of its first row
    uint32_t bytes;           // as stored
    uint32_t crc;             // of the stored bytes
};
static_assert(sizeof(BlockEntry) == 24);

struct SectionEntry {
    uint64_t offset, bytes;
    uint32_t crc, unused;
};

struct TableFooter {
    char magic[8];                         //    0
    uint64_t table_number;                 //    8
    uint64_t file_bytes;                   //   16
    uint64_t row_count;                    //   24
    uint64_t block_count;                  //   32
    uint64_t tombstone_count;              //   40
    uint64_t shadowed_count;               //   48  rows that have the key of the row before
    uint64_t sequence_min, sequence_max;   //   56
    int64_t timestamp_min_ns, timestamp_max_ns;  // 72
    uint64_t bloom_lines;                  //   88
    SectionEntry sections[SECTION_COUNT];  //   96
    uint64_t key_min[KEY_WORDS_MAX];       //  288
    uint64_t key_max[KEY_WORDS_MAX];       //  544
    char tail[TABLE_PAGE_BYTES - 800 - 4];
    uint32_t crc;                          // 4092  of all before
};
static_assert(sizeof(TableFooter) == TABLE_PAGE_BYTES && offsetof(TableFooter, crc) == 4092);
static_assert(offsetof(TableFooter, sections) == 96 && offsetof(TableFooter, key_min) == 288);

inline uint32_t page_crc(const void *page) { return crc32c(0, page, TABLE_PAGE_BYTES - 4); }

inline uint64_t bloom_lines_for(uint64_t key_count) {
    return key_count == 0 ? 1 : (key_count * BLOOM_BITS_PER_KEY + BLOOM_LINE_BITS - 1) / BLOOM_LINE_BITS;
}

// A blocked Bloom filter (Putze, Sanders, Singler 2007): all of a key's bits lie in one cache line.
inline const uint64_t *bloom_line(const uint64_t *filter, uint64_t lines, uint64_t hash) {
    return filter + 8 * static_cast<uint64_t>((static_cast<unsigned __int128>(hash) * lines) >> 64);
}

inline uint64_t bloom_mix(uint64_t hash) { return hash * 0x9E3779B97F4A7C15ull; }

inline void bloom_add(uint64_t *filter, uint64_t lines, uint64_t hash) {
    uint64_t *line = const_cast<uint64_t *>(bloom_line(filter, lines, hash));
    uint64_t bits = bloom_mix(hash);
    for (uint32_t probe = 0; probe < BLOOM_PROBES; ++probe, bits >>= 9) line[(bits >> 6) & 7] |= 1ull << (bits & 63);
}

inline bool bloom_may_have(const uint64_t *filter, uint64_t lines, uint64_t hash) {
    const uint64_t *line = bloom_line(filter, lines, hash);
    uint64_t bits = bloom_mix(hash);
    for (uint32_t probe = 0; probe < BLOOM_PROBES; ++probe, bits >>= 9)
        if ((line[(bits >> 6) & 7] & (1ull << (bits & 63))) == 0) return false;
    return true;
}

inline uint8_t key_tag(uint64_t hash) { return static_cast<uint8_t>(hash >> 56); }

}  // namespace ringmain
