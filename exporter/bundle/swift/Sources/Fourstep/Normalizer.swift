import Foundation

/// What is done with a text before it is cut into words.
enum Normalizer: Sendable {
    case composed(Bool)  // NFC, or NFD
    case lowercase
    case replace(Pattern, by: Points)
    case prepend(Points)
    case strip(left: Bool, right: Bool)
    case precompiled(Precompiled)

    /// The normalizers of a file, in order; throws `Malformed` for a kind that is not known.
    static func all(_ node: Node, _ unicode: UnicodeTables) throws -> [Normalizer] {
        switch try node.get("type").name() {
        case "Sequence":
            return try node.get("normalizers").items().flatMap { try all($0, unicode) }
        case "NFC":
            return [.composed(true)]
        case "NFD":
            return [.composed(false)]
        case "Lowercase":
            return [.lowercase]
        case "Replace":
            let pattern = try Pattern(node.get("pattern"), unicode)
            return [.replace(pattern, by: try node.get("content").text())]
        case "Prepend":
            return [.prepend(try node.get("prepend").text())]
        case "Strip":
            let left = try node.get("strip_left").flag()
            return [.strip(left: left, right: try node.get("strip_right").flag())]
        case "Precompiled":
            return [.precompiled(try Precompiled(node.get("precompiled_charsmap")))]
        case let other:
            throw try node.get("type").wrong("'\(other)' is not known")
        }
    }

    func apply(_ text: Points, _ unicode: UnicodeTables) -> Points {
        switch self {
        case .composed(let isComposed):
            return unicode.normalized(text, composed: isComposed)
        case .lowercase:
            return unicode.lowered(text)
        case .replace(let pattern, let content):
            return pattern.replaced(text, content)
        case .prepend(let prefix):
            return text.isEmpty ? text : prefix + text
        case .strip(let left, let right):
            var rest = text[...]
            while left, let first = rest.first, unicode.isWhiteSpace(first) {
                rest.removeFirst()
            }
            while right, let last = rest.last, unicode.isWhiteSpace(last) {
                rest.removeLast()
            }
            return Array(rest)
        case .precompiled(let map):
            return map.apply(text, unicode)
        }
    }
}

/// SentencePiece's map of grapheme clusters: a double array over their bytes, and texts.
struct Precompiled: Sendable {
    private static let mostClusterBytes = 5

    private let units: [UInt32]
    private let texts: [UInt8]

    init(_ node: Node) throws {
        guard let data = Data(base64Encoded: try node.name()), data.count >= 4 else {
            throw node.wrong("is not base64, or cut off")
        }
        let map = [UInt8](data)
        func word(_ at: Int) -> UInt32 {
            (0..<4).reduce(UInt32(0)) { $0 | UInt32(map[at + $1]) << UInt32(8 * $1) }
        }
        let bytes = Int(word(0))
        guard bytes >= 4, bytes % 4 == 0, bytes <= map.count - 4 else {
            throw node.wrong("its tree is cut off")
        }
        units = stride(from: 4, to: 4 + bytes, by: 4).map(word)
        texts = Array(map[(4 + bytes)...])
    }

    func apply(_ text: Points, _ unicode: UnicodeTables) -> Points {
        var found: Points = []
        var start = 0
        while start < text.count {
            let end = unicode.clusterEnd(text, from: start)
            let cluster = Array(text[start..<end])
            let bytes = Array(string(cluster).utf8)
            if bytes.count <= Self.mostClusterBytes, let whole = mapped(bytes) {
                found += whole
            } else {
                found += cluster.flatMap { mapped(Array(string([$0]).utf8)) ?? [$0] }
            }
            start = end
        }
        return found
    }

    /// What stands for the shortest beginning of these bytes that is in the tree, or nil.
    private func mapped(_ key: [UInt8]) -> Points? {
        var at = offset(unit(0))
        for byte in key {
            if byte == 0 {
                return nil
            }
            at ^= UInt32(byte)
            let own = unit(at)
            if own & 0x8000_00FF != UInt32(byte) {
                return nil
            }
            at ^= offset(own)
            if own >> 8 & 1 == 1 {
                let start = min(Int(unit(at) & 0x7FFF_FFFF), texts.count)
                let text = texts[start...].prefix { $0 != 0 }
                return points(String(decoding: text, as: UTF8.self))
            }
        }
        return nil
    }

    private func unit(_ at: UInt32) -> UInt32 {
        Int(at) < units.count ? units[Int(at)] : 0
    }

    private func offset(_ unit: UInt32) -> UInt32 {
        (unit >> 10) << ((unit & (1 << 9)) >> 6)
    }
}
