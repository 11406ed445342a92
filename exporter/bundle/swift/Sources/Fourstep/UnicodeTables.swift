import Foundation

/// Unicode as the `tokenizers` library has it, from `unicode.bin` among the resources.
///
/// The platform's own tables are of another version, and its lower case is another function.
struct UnicodeTables: Sendable {
    /// Grapheme classes, as the file numbers them.
    private enum Kind {
        static let control = 1
        static let extend = 2
        static let spacing = 3
        static let joiner = 4
        static let prepend = 5
        static let hangulL = 6
        static let hangulV = 7
        static let hangulT = 8
        static let hangulLV = 9
        static let hangulLVT = 10
        static let pictograph = 11
    }

    private enum Conjunct {
        static let consonant = 1
        static let linker = 2
    }

    private enum Hangul {
        static let syllables: UInt32 = 0xAC00
        static let leads: UInt32 = 0x1100
        static let vowels: UInt32 = 0x1161
        static let tails: UInt32 = 0x11A7  // one before the first
        static let leadCount: UInt32 = 19
        static let vowelCount: UInt32 = 21
        static let tailCount: UInt32 = 28
        static let count: UInt32 = 19 * 21 * 28
    }

    private var starts: [UInt32] = []  // of runs with the same properties
    private var properties: [Int] = []
    private var ranks: [UInt32: Int] = [:]
    private var lower: [UInt32: Points] = [:]
    private var parts: [UInt32: Points] = [:]
    private var wholes: [UInt64: UInt32] = [:]

    /// The tables; throws where the resource is not there.
    static let shared: Result<UnicodeTables, FourstepError> = {
        guard let place = Bundle.module.url(forResource: "unicode", withExtension: "bin"),
            let file = try? Data(contentsOf: place)
        else {
            return .failure(.package("unicode.bin is not among the library's resources"))
        }
        return .success(UnicodeTables(file: [UInt8](file)))
    }()

    private init(file: [UInt8]) {
        var at = (file.firstIndex(of: 0) ?? 0) + 1  // behind the head, which says what it is
        func number() -> Int {
            var (value, shift) = (0, 0)
            while file[at] > 0x7F {
                value |= Int(file[at] & 0x7F) << shift
                shift += 7
                at += 1
            }
            at += 1
            return value | Int(file[at - 1]) << shift
        }
        var start: UInt32 = 0
        for _ in 0..<number() {
            starts.append(start)
            start += UInt32(number())
            properties.append(number())
        }
        var point: UInt32 = 0
        for _ in 0..<number() {
            point += UInt32(number())
            let length = number()
            let rank = number()
            for _ in 0..<length {
                ranks[point] = rank
                point += 1
            }
        }
        point = 0
        for _ in 0..<number() {
            point += UInt32(number())
            lower[point] = (0..<number()).map { _ in UInt32(number()) }
        }
        point = 0
        for _ in 0..<number() {
            point += UInt32(number())
            let composes = number() == 1
            let found = (0..<number()).map { _ in UInt32(number()) }
            parts[point] = found
            if composes {
                wholes[Self.pair(found[0], found[1])] = point
            }
        }
    }

    private static func pair(_ first: UInt32, _ second: UInt32) -> UInt64 {
        UInt64(first) << 32 | UInt64(second)
    }

    private func flags(of point: UInt32) -> Int {
        var (low, high) = (0, starts.count)
        while high - low > 1 {
            let middle = (low + high) / 2
            if starts[middle] <= point {
                low = middle
            } else {
                high = middle
            }
        }
        return properties[low]
    }

    /// `\p{L}`.
    func isLetter(_ point: UInt32) -> Bool { flags(of: point) & 1 << 6 != 0 }

    /// `\p{N}`.
    func isNumber(_ point: UInt32) -> Bool { flags(of: point) & 1 << 7 != 0 }

    /// `\s` of regular expressions.
    func isSpace(_ point: UInt32) -> Bool { flags(of: point) & 1 << 8 != 0 }

    /// White space where no expression is named.
    func isWhiteSpace(_ point: UInt32) -> Bool { flags(of: point) & 1 << 9 != 0 }

    /// Lower case by code point: no final sigma.
    func lowered(_ text: Points) -> Points {
        text.flatMap { lower[$0] ?? [$0] }
    }

    /// Canonical decomposition (NFD), and composed again (NFC).
    func normalized(_ text: Points, composed: Bool) -> Points {
        var found: Points = []
        for point in text {
            decompose(point, into: &found)
        }
        order(&found)
        return composed ? compose(found) : found
    }

    private func decompose(_ point: UInt32, into found: inout Points) {
        if point >= Hangul.syllables, point - Hangul.syllables < Hangul.count {
            let syllable = point - Hangul.syllables
            found.append(Hangul.leads + syllable / (Hangul.vowelCount * Hangul.tailCount))
            found.append(Hangul.vowels + syllable / Hangul.tailCount % Hangul.vowelCount)
            if syllable % Hangul.tailCount != 0 {
                found.append(Hangul.tails + syllable % Hangul.tailCount)
            }
            return
        }
        guard let own = parts[point] else {
            found.append(point)
            return
        }
        for part in own {
            decompose(part, into: &found)
        }
    }

    private func rank(_ point: UInt32) -> Int { ranks[point] ?? 0 }

    /// Sort each run of marks by rank, keeping the order of equal ones.
    private func order(_ text: inout Points) {
        var start = 0
        while start < text.count {
            var end = start
            while end < text.count, rank(text[end]) > 0 {
                end += 1
            }
            if end - start > 1 {
                let marks = text[start..<end].enumerated().sorted {
                    (rank($0.element), $0.offset) < (rank($1.element), $1.offset)
                }
                text.replaceSubrange(start..<end, with: marks.map(\.element))
            }
            start = end + 1
        }
    }

    private func compose(_ text: Points) -> Points {
        var found: Points = []
        var starter: Int?
        var last = -1  // the rank of what stands behind the starter; -1: nothing does
        for point in text {
            let own = rank(point)
            if let place = starter, last < own, let composed = whole(found[place], point) {
                found[place] = composed
                continue
            }
            if own == 0 {
                starter = found.count
                last = -1
            } else {
                last = own
            }
            found.append(point)
        }
        return found
    }

    private func whole(_ first: UInt32, _ second: UInt32) -> UInt32? {
        let lead = first &- Hangul.leads
        let vowel = second &- Hangul.vowels
        if lead < Hangul.leadCount, vowel < Hangul.vowelCount {
            return Hangul.syllables + (lead * Hangul.vowelCount + vowel) * Hangul.tailCount
        }
        let syllable = first &- Hangul.syllables
        let tail = second &- Hangul.tails
        if syllable < Hangul.count, syllable % Hangul.tailCount == 0, tail > 0,
            tail < Hangul.tailCount
        {
            return first + tail
        }
        return wholes[Self.pair(first, second)]
    }

    /// Where the grapheme cluster that begins at `from` ends (UAX 29).
    func clusterEnd(_ text: Points, from: Int) -> Int {
        var before = text[from]
        var afterPictograph = kind(before) == Kind.pictograph  // and what extends it, and a joiner
        var afterConsonant = conjunct(before) == Conjunct.consonant
        var hasLinker = false
        for at in (from + 1)..<max(text.count, from + 1) {
            let point = text[at]
            let joinsPictograph =
                kind(before) == Kind.joiner && afterPictograph && kind(point) == Kind.pictograph
            let joinsConsonant =
                afterConsonant && hasLinker && conjunct(point) == Conjunct.consonant
            if !(joins(before, point) || joinsPictograph || joinsConsonant) {
                return at
            }
            let extends = kind(point) == Kind.extend || kind(point) == Kind.joiner
            afterPictograph =
                kind(point) == Kind.pictograph
                || (afterPictograph && extends && kind(before) != Kind.joiner)
            hasLinker =
                conjunct(point) == Conjunct.linker
                || (conjunct(point) > Conjunct.linker && hasLinker)
            afterConsonant =
                conjunct(point) == Conjunct.consonant
                || (afterConsonant && conjunct(point) >= Conjunct.linker)
            before = point
        }
        return text.count
    }

    private func kind(_ point: UInt32) -> Int { flags(of: point) & 15 }

    private func conjunct(_ point: UInt32) -> Int { flags(of: point) >> 4 & 3 }

    private func joins(_ before: UInt32, _ point: UInt32) -> Bool {
        if before == 0x0D, point == 0x0A {
            return true
        }
        let (left, right) = (kind(before), kind(point))
        if left == Kind.control || right == Kind.control {
            return false
        }
        if [Kind.extend, Kind.joiner, Kind.spacing].contains(right) || left == Kind.prepend {
            return true
        }
        switch left {
        case Kind.hangulL:
            return [Kind.hangulL, Kind.hangulV, Kind.hangulLV, Kind.hangulLVT].contains(right)
        case Kind.hangulLV, Kind.hangulV:
            return right == Kind.hangulV || right == Kind.hangulT
        case Kind.hangulLVT, Kind.hangulT:
            return right == Kind.hangulT
        default:
            return false
        }
    }
}
