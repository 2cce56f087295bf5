// CRC-32C (Castagnoli), the checksum of every log frame and file header.
//
// On x86-64 with SSE 4.2 three independent streams hide the latency of the crc32 instruction; their results are joined by
// multiplying with x^(8 * bytes) modulo the polynomial, through tables made at compile time. Elsewhere one byte at a time.
// The value is the usual one: crc32c("123456789") == 0xe3069283, and a checksum may be continued: crc32c(crc32c(0, a), b).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace ringmain {

inline constexpr uint32_t CRC32C_POLYNOMIAL = 0x82f63b78u;  // bit 31 is the coefficient of x^0

constexpr uint32_t crc32c_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        if (a & bit) product ^= b;
        b = (b & 1) ? (b >> 1) ^ CRC32C_POLYNOMIAL : b >> 1;
    }
    return product;
}

// x^(8 * bytes): multiplying a checksum by it is the same as feeding that many zero bytes.
constexpr uint32_t crc32c_shift_factor(size_t bytes) {
    uint32_t result = 1u << 31, square = 1u << 23;
    for (; bytes != 0; bytes >>= 1) {
        if (bytes & 1) result = crc32c_multiply(result, square);
        square = crc32c_multiply(square, square);
    }
    return result;
}

using Crc32cShift = std::array<std::array<uint32_t, 256>, 4>;

constexpr Crc32cShift crc32c_shift_table(size_t bytes) {
    Crc32cShift table{};
    const uint32_t factor = crc32c_shift_factor(bytes);
    for (unsigned lane = 0; lane < 4; ++lane)
        for (uint32_t byte = 0; byte < 256; ++byte) table[lane][byte] = crc32c_multiply(factor, byte << (8 * lane));
    return table;
}

constexpr std::array<uint32_t, 256> crc32c_byte_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) ? (crc >> 1) ^ CRC32C_POLYNOMIAL : crc >> 1;
        table[byte] = crc;
    }
    return table;
}

inline constexpr std::array<uint32_t, 256> CRC32C_BYTES = crc32c_byte_table();
inline constexpr size_t CRC32C_LONG = 4096, CRC32C_SHORT = 256;  // bytes of one of the three streams
inline constexpr Crc32cShift CRC32C_LONG_SHIFT = crc32c_shift_table(CRC32C_LONG);
inline constexpr Crc32cShift CRC32C_SHORT_SHIFT = crc32c_shift_table(CRC32C_SHORT);

inline uint32_t crc32c_portable(uint32_t crc, const void *data, size_t bytes) {
    const auto *at = static_cast<const unsigned char *>(data);
    crc = ~crc;
    for (; bytes != 0; --bytes) crc = (crc >> 8) ^ CRC32C_BYTES[(crc ^ *at++) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)
inline uint32_t crc32c_shift(const Crc32cShift &table, uint32_t crc) {
    return table[0][crc & 0xff] ^ table[1][(crc >> 8) & 0xff] ^ table[2][(crc >> 16) & 0xff] ^ table[3][crc >> 24];
}

__attribute__((target("sse4.2"))) inline uint64_t crc32c_word(uint64_t crc, const unsigned char *at) {
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    return _mm_crc32_u64(crc, word);
}

template <size_t STREAM>
__attribute__((target("sse4.2"))) inline uint64_t crc32c_three_streams(uint64_t first, const unsigned char *at,
                                                                       const Crc32cShift &shift) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < STREAM; i += 8) {
        first = crc32c_word(first, at + i);
        second = crc32c_word(second, at + STREAM + i);
        third = crc32c_word(third, at + 2 * STREAM + i);
    }
    const uint32_t joined = crc32c_shift(shift, static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
    return crc32c_shift(shift, joined) ^ static_cast<uint32_t>(third);
}

__attribute__((target("sse4.2"))) inline uint32_t crc32c_sse42(uint32_t seed, const void *data, size_t bytes) {
    const auto *at = static_cast<const unsigned char *>(data);
    uint64_t crc = static_cast<uint32_t>(~seed);
    for (; bytes >= 3 * CRC32C_LONG; bytes -= 3 * CRC32C_LONG, at += 3 * CRC32C_LONG)
        crc = crc32c_three_streams<CRC32C_LONG>(crc, at, CRC32C_LONG_SHIFT);
    for (; bytes >= 3 * CRC32C_SHORT; bytes -= 3 * CRC32C_SHORT, at += 3 * CRC32C_SHORT)
        crc = crc32c_three_streams<CRC32C_SHORT>(crc, at, CRC32C_SHORT_SHIFT);
    for (; bytes >= 8; bytes -= 8, at += 8) crc = crc32c_word(crc, at);
    for (; bytes != 0; --bytes) crc = _mm_crc32_u8(static_cast<uint32_t>(crc), *at++);
    return ~static_cast<uint32_t>(crc);
}
#endif

inline uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
#if defined(__x86_64__)
    static const bool has_sse42 = __builtin_cpu_supports("sse4.2");
    if (has_sse42) return crc32c_sse42(crc, data, bytes);
#endif
    return crc32c_portable(crc, data, bytes);
}

}  // namespace ringmain
