/// @file
/// SHA-256 (FIPS 180-4), of bytes as they come.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

// FOURSTEP_PORTABLE leaves out what is for one kind of processor.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(FOURSTEP_PORTABLE)
#include <immintrin.h>
#define FOURSTEP_SHA_NI 1
#endif

namespace fourstep {

/// A digest in the making.
class Sha256 {
 public:
  /// Takes further bytes.
  void update(const void* bytes, std::size_t count) {
    const auto* at = static_cast<const std::uint8_t*>(bytes);
    total_ += count;
    while (count > 0) {
      if (held_ == 0 && count >= block_.size()) {
        const std::size_t whole = count / block_.size();
        compress(at, whole);
        at += whole * block_.size();
        count %= block_.size();
        continue;
      }
      const std::size_t part = std::min(count, block_.size() - held_);
      std::memcpy(block_.data() + held_, at, part);
      held_ += part;
      at += part;
      count -= part;
      if (held_ == block_.size()) {
        compress(block_.data(), 1);
        held_ = 0;
      }
    }
  }

  /// The digest in hexadecimal; ends it.
  std::string hex() {
    const std::uint64_t bits = total_ * 8;
    const std::array<std::uint8_t, 64> padding = {0x80};
    update(padding.data(), held_ < 56 ? 56 - held_ : 120 - held_);
    std::array<std::uint8_t, 8> length{};
    for (std::size_t i = 0; i < 8; ++i) length[i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
    update(length.data(), length.size());
    std::string found;
    for (const std::uint32_t word : state_)
      for (int shift = 28; shift >= 0; shift -= 4)
        found += "0123456789abcdef"[(word >> shift) & 15U];
    return found;
  }

 private:
  static constexpr std::array<std::uint32_t, 64> rounds = {
      0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
      0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
      0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
      0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
      0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
      0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
      0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
      0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
      0xc67178f2};

  static std::uint32_t turned(std::uint32_t x, int by) { return (x >> by) | (x << (32 - by)); }

  void compress(const std::uint8_t* bytes, std::size_t blocks) {
#ifdef FOURSTEP_SHA_NI
    static const bool has_instructions =
        __builtin_cpu_supports("sse4.1") != 0 && __builtin_cpu_supports("ssse3") != 0 && sha_ni();
    if (has_instructions) return compress_with_instructions(bytes, blocks);
#endif
    for (; blocks > 0; --blocks, bytes += 64) compress_one(bytes);
  }

  void compress_one(const std::uint8_t* bytes) {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i)
      w[i] = static_cast<std::uint32_t>(bytes[4 * i]) << 24U |
             static_cast<std::uint32_t>(bytes[4 * i + 1]) << 16U |
             static_cast<std::uint32_t>(bytes[4 * i + 2]) << 8U | bytes[4 * i + 3];
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t a = w[i - 15], b = w[i - 2];
      w[i] = w[i - 16] + w[i - 7] + (turned(a, 7) ^ turned(a, 18) ^ (a >> 3)) +
             (turned(b, 17) ^ turned(b, 19) ^ (b >> 10));
    }
    std::array<std::uint32_t, 8> s = state_;
    for (std::size_t i = 0; i < 64; ++i) {
      const std::uint32_t choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
      const std::uint32_t majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
      const std::uint32_t first = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) +
                                  choice + rounds[i] + w[i];
      const std::uint32_t second =
          (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) + majority;
      s = {first + second, s[0], s[1], s[2], s[3] + first, s[4], s[5], s[6]};
    }
    for (std::size_t i = 0; i < 8; ++i) state_[i] += s[i];
  }

#ifdef FOURSTEP_SHA_NI
  static bool sha_ni() {
    std::uint32_t a = 7, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return (b >> 29U & 1U) != 0;
  }

  /// Two rounds an instruction: on a processor that has them a gigabyte takes a second, not six.
  __attribute__((target("sha,sse4.1,ssse3"))) void compress_with_instructions(
      const std::uint8_t* bytes, std::size_t blocks) {
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i low = _mm_shuffle_epi32(load(state_.data()), 0xB1);
    __m128i high = _mm_shuffle_epi32(load(state_.data() + 4), 0x1B);
    __m128i abef = _mm_alignr_epi8(low, high, 8);
    __m128i cdgh = _mm_blend_epi16(high, low, 0xF0);
    for (; blocks > 0; --blocks, bytes += 64) {
      const __m128i abef_before = abef, cdgh_before = cdgh;
      __m128i w[4];
      for (std::size_t i = 0; i < 16; ++i) {
        __m128i& next = w[i % 4];
        if (i < 4) {
          next = _mm_shuffle_epi8(load(bytes + 16 * i), order);
        } else {
          const __m128i back = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
          next = _mm_add_epi32(_mm_sha256msg1_epu32(next, w[(i + 1) % 4]), back);
          next = _mm_sha256msg2_epu32(next, w[(i + 3) % 4]);
        }
        const __m128i sum = _mm_add_epi32(next, load(rounds.data() + 4 * i));
        cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
        abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
      }
      abef = _mm_add_epi32(abef, abef_before);
      cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    low = _mm_shuffle_epi32(abef, 0x1B);
    high = _mm_shuffle_epi32(cdgh, 0xB1);
    store(state_.data(), _mm_blend_epi16(low, high, 0xF0));
    store(state_.data() + 4, _mm_alignr_epi8(high, low, 8));
  }

  static __m128i load(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }
  static void store(void* at, __m128i value) { _mm_storeu_si128(static_cast<__m128i*>(at), value); }
#endif

  std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::uint8_t, 64> block_{};
  std::size_t held_ = 0;
  std::uint64_t total_ = 0;
};

}  // namespace fourstep
