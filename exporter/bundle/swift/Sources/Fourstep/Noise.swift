import Foundation

/// The noise that `torch.randn` draws with a CPU generator.
///
/// MT19937 (Matsumoto and Nishimura 1998), seeded with the low 32 bits of the seed; normals by Box and
/// Muller in double, rounded to float once. Successive draws go on with the stream.
public struct Noise: Sendable {
    static let block = 16  // from so many values on they are drawn in blocks of so many
    private static let size = 624
    private static let middle = 397

    private var state: [UInt32]
    private var at = Noise.size
    private var spare: Double?  // the second of a pair, for the next value

    public init(seed: UInt64) {
        state = [UInt32(truncatingIfNeeded: seed)]
        for i in 1..<Self.size {
            let before = state[i - 1]
            state.append(1_812_433_253 &* (before ^ (before >> 30)) &+ UInt32(i))
        }
    }

    /// The next standard normals of the stream.
    public mutating func draw(_ count: Int) -> [Float] {
        if count < Self.block {
            return (0..<count).map { _ in Float(single()) }
        }
        var values = [Float](repeating: 0, count: count)
        let uniform = uniforms(count)
        for start in stride(from: 0, through: count - Self.block, by: Self.block) {
            Self.transform(uniform[start..<(start + Self.block)], &values, at: start)
        }
        if count % Self.block != 0 {  // the last 16 values are drawn again, as a block
            Self.transform(uniforms(Self.block)[...], &values, at: count - Self.block)
        }
        return values
    }

    private static func transform(_ uniform: ArraySlice<Double>, _ values: inout [Float], at: Int) {
        let half = block / 2
        for i in 0..<half {
            let radius = (-2 * log(1 - uniform[uniform.startIndex + i])).squareRoot()
            let angle = 2 * Double.pi * uniform[uniform.startIndex + half + i]
            values[at + i] = Float(radius * cos(angle))
            values[at + half + i] = Float(radius * sin(angle))
        }
    }

    private mutating func single() -> Double {
        if let value = spare {
            spare = nil
            return value
        }
        let angle = 2 * Double.pi * uniform53()
        let radius = (-2 * log1p(-uniform53())).squareRoot()
        spare = radius * sin(angle)
        return radius * cos(angle)
    }

    private mutating func uniforms(_ count: Int) -> [Double] {
        (0..<count).map { _ in Double(next() & 0xFFFFFF) * 0x1p-24 }
    }

    private mutating func uniform53() -> Double {
        let high = UInt64(next())
        let low = UInt64(next())
        return Double((high << 32 | low) & ((1 << 53) - 1)) * 0x1p-53
    }

    private mutating func next() -> UInt32 {
        if at == Self.size {
            twist()
        }
        var y = state[at]
        at += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C_5680
        y ^= (y << 15) & 0xEFC6_0000
        return y ^ (y >> 18)
    }

    private mutating func twist() {
        for i in 0..<Self.size {
            let y = (state[i] & 0x8000_0000) | (state[(i + 1) % Self.size] & 0x7FFF_FFFF)
            let other: UInt32 = y & 1 == 0 ? 0 : 0x9908_B0DF
            state[i] = state[(i + Self.middle) % Self.size] ^ (y >> 1) ^ other
        }
        at = 0
    }
}
