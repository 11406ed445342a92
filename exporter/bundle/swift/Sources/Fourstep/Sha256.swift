import Foundation

#if canImport(CryptoKit)
import CryptoKit
#endif

/// SHA-256 (FIPS 180-4): by CryptoKit where it is there, else by what is below.
struct Sha256 {
    #if canImport(CryptoKit)
    private var hash = SHA256()

    mutating func update(_ data: Data) {
        hash.update(data: data)
    }

    /// 64 digits; nothing may be added afterwards.
    mutating func hex() -> String {
        Self.hex(hash.finalize())
    }
    #else
    private var hash = PlainSha256()

    mutating func update(_ data: Data) {
        hash.update([UInt8](data))
    }

    /// 64 digits; nothing may be added afterwards.
    mutating func hex() -> String {
        Self.hex(hash.finalize())
    }
    #endif

    static func hex(of data: Data) -> String {
        var hash = Sha256()
        hash.update(data)
        return hash.hex()
    }

    private static func hex(_ bytes: some Sequence<UInt8>) -> String {
        let digits = Array("0123456789abcdef")
        return String(bytes.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] })
    }
}

/// SHA-256 without a library.
struct PlainSha256 {
    private static let constants: [UInt32] = [
        0x428A_2F98, 0x7137_4491, 0xB5C0_FBCF, 0xE9B5_DBA5, 0x3956_C25B, 0x59F1_11F1,
        0x923F_82A4, 0xAB1C_5ED5, 0xD807_AA98, 0x1283_5B01, 0x2431_85BE, 0x550C_7DC3,
        0x72BE_5D74, 0x80DE_B1FE, 0x9BDC_06A7, 0xC19B_F174, 0xE49B_69C1, 0xEFBE_4786,
        0x0FC1_9DC6, 0x240C_A1CC, 0x2DE9_2C6F, 0x4A74_84AA, 0x5CB0_A9DC, 0x76F9_88DA,
        0x983E_5152, 0xA831_C66D, 0xB003_27C8, 0xBF59_7FC7, 0xC6E0_0BF3, 0xD5A7_9147,
        0x06CA_6351, 0x1429_2967, 0x27B7_0A85, 0x2E1B_2138, 0x4D2C_6DFC, 0x5338_0D13,
        0x650A_7354, 0x766A_0ABB, 0x81C2_C92E, 0x9272_2C85, 0xA2BF_E8A1, 0xA81A_664B,
        0xC24B_8B70, 0xC76C_51A3, 0xD192_E819, 0xD699_0624, 0xF40E_3585, 0x106A_A070,
        0x19A4_C116, 0x1E37_6C08, 0x2748_774C, 0x34B0_BCB5, 0x391C_0CB3, 0x4ED8_AA4A,
        0x5B9C_CA4F, 0x682E_6FF3, 0x748F_82EE, 0x78A5_636F, 0x84C8_7814, 0x8CC7_0208,
        0x90BE_FFFA, 0xA450_6CEB, 0xBEF9_A3F7, 0xC671_78F2,
    ]

    private var state: [UInt32] = [
        0x6A09_E667, 0xBB67_AE85, 0x3C6E_F372, 0xA54F_F53A, 0x510E_527F, 0x9B05_688C,
        0x1F83_D9AB, 0x5BE0_CD19,
    ]
    private var words = [UInt32](repeating: 0, count: 64)
    private var rest: [UInt8] = []
    private var count: UInt64 = 0

    mutating func update(_ bytes: [UInt8]) {
        count += UInt64(bytes.count)
        rest += bytes
        let whole = rest.count / 64 * 64
        for start in stride(from: 0, to: whole, by: 64) {
            rest.withUnsafeBufferPointer { schedule($0, from: start) }
            mix()
        }
        rest.removeFirst(whole)
    }

    mutating func finalize() -> [UInt8] {
        let bits = count * 8
        let zeros = (119 - Int(count % 64)) % 64
        update([0x80] + [UInt8](repeating: 0, count: zeros))
        update((0..<8).reversed().map { UInt8(truncatingIfNeeded: bits >> UInt64(8 * $0)) })
        return state.flatMap { word in
            (0..<4).reversed().map { UInt8(truncatingIfNeeded: word >> UInt32(8 * $0)) }
        }
    }

    /// The words of a block: its own, and those that follow from them.
    private mutating func schedule(_ bytes: UnsafeBufferPointer<UInt8>, from start: Int) {
        for i in 0..<16 {
            let at = start + 4 * i
            let upper = UInt32(bytes[at]) << 24 | UInt32(bytes[at + 1]) << 16
            words[i] = upper | UInt32(bytes[at + 2]) << 8 | UInt32(bytes[at + 3])
        }
        for i in 16..<64 {
            let (far, near) = (words[i - 15], words[i - 2])
            let first = turned(far, 7) ^ turned(far, 18) ^ (far >> 3)
            let second = turned(near, 17) ^ turned(near, 19) ^ (near >> 10)
            words[i] = words[i - 16] &+ first &+ words[i - 7] &+ second
        }
    }

    private mutating func mix() {
        var (a, b, c, d) = (state[0], state[1], state[2], state[3])
        var (e, f, g, h) = (state[4], state[5], state[6], state[7])
        for i in 0..<64 {
            let first = turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)
            let choice = (e & f) ^ (~e & g)
            let one = h &+ first &+ choice &+ Self.constants[i] &+ words[i]
            let second = turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)
            let majority = (a & b) ^ (a & c) ^ (b & c)
            (h, g, f, e) = (g, f, e, d &+ one)
            (d, c, b, a) = (c, b, a, one &+ second &+ majority)
        }
        for (i, value) in [a, b, c, d, e, f, g, h].enumerated() {
            state[i] = state[i] &+ value
        }
    }

    private func turned(_ word: UInt32, _ bits: UInt32) -> UInt32 {
        word &>> bits | word &<< (32 - bits)
    }
}
