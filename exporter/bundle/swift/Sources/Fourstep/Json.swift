import Foundation

/// Code points of a text. Swift's own strings compare canonically, which would take two tokens of a
/// vocabulary for one.
typealias Points = [UInt32]

func points(_ text: String) -> Points {
    text.unicodeScalars.map(\.value)
}

func string(_ points: some Sequence<UInt32>) -> String {
    var found = String.UnicodeScalarView()
    for point in points {
        found.append(Unicode.Scalar(point) ?? "\u{FFFD}")
    }
    return String(found)
}

/// A JSON value (RFC 8259). Of a key that is there twice the last counts.
indirect enum Json: Sendable {
    case object([Points: Json], order: [Points])
    case list([Json])
    case text(Points)
    case number(Double)
    case flag(Bool)
    case null

    /// The value of a UTF-8 text; throws `Malformed`.
    static func parse(_ bytes: Data) throws -> Json {
        guard let text = String(data: bytes, encoding: .utf8) else {
            throw Malformed(what: "not UTF-8 text")
        }
        var parser = JsonParser(text: points(text))
        return try parser.whole()
    }
}

private struct JsonParser {
    private static let mostDepth = 500
    private static let spaces: Set<UInt32> = [0x20, 0x09, 0x0A, 0x0D]

    let text: Points
    private var at = 0
    private var depth = 0

    init(text: Points) {
        self.text = text
    }

    mutating func whole() throws -> Json {
        let found = try value()
        skipSpace()
        if at < text.count {
            throw wrong("something stands behind the end")
        }
        return found
    }

    private func wrong(_ what: String) -> Malformed {
        Malformed(what: "not JSON: \(what) (character \(at))")
    }

    private mutating func skipSpace() {
        while at < text.count, Self.spaces.contains(text[at]) {
            at += 1
        }
    }

    private mutating func next() throws -> UInt32 {
        guard at < text.count else { throw wrong("it ends too early") }
        at += 1
        return text[at - 1]
    }

    /// Whether the next character but white space is this one, which is then taken.
    private mutating func taken(_ wanted: Unicode.Scalar) -> Bool {
        skipSpace()
        let isThere = at < text.count && text[at] == wanted.value
        at += isThere ? 1 : 0
        return isThere
    }

    private mutating func value() throws -> Json {
        skipSpace()
        let first = try next()
        depth += 1
        defer { depth -= 1 }
        if depth > Self.mostDepth {
            throw wrong("nested too deeply")
        }
        switch first {
        case 0x7B: return try object()
        case 0x5B: return try list()
        case 0x22: return .text(try characters())
        case 0x2D, 0x30...0x39: return try number()
        default: return try word()
        }
    }

    private mutating func object() throws -> Json {
        var found: [Points: Json] = [:]
        var order: [Points] = []
        if taken("}") {
            return .object(found, order: order)
        }
        repeat {
            guard taken("\"") else { throw wrong("a key in quotation marks is expected") }
            let key = try characters()
            guard taken(":") else { throw wrong("a colon is expected") }
            if found.updateValue(try value(), forKey: key) == nil {
                order.append(key)
            }
        } while taken(",")
        guard taken("}") else { throw wrong("a comma or } is expected") }
        return .object(found, order: order)
    }

    private mutating func list() throws -> Json {
        var found: [Json] = []
        if taken("]") {
            return .list(found)
        }
        repeat {
            found.append(try value())
        } while taken(",")
        guard taken("]") else { throw wrong("a comma or ] is expected") }
        return .list(found)
    }

    private mutating func characters() throws -> Points {
        var found: Points = []
        while true {
            let point = try next()
            if point == 0x22 {
                return found
            }
            if point < 0x20 {
                throw wrong("a control character in a string")
            }
            found.append(try point == 0x5C ? escaped() : point)
        }
    }

    private mutating func escaped() throws -> UInt32 {
        switch try next() {
        case 0x22: return 0x22
        case 0x5C: return 0x5C
        case 0x2F: return 0x2F
        case 0x62: return 0x08
        case 0x66: return 0x0C
        case 0x6E: return 0x0A
        case 0x72: return 0x0D
        case 0x74: return 0x09
        case 0x75: return try surrogates()
        default: throw wrong("an unknown escape")
        }
    }

    /// What `\u` stands for: a code point, or the first half of one whose other half has to follow.
    private mutating func surrogates() throws -> UInt32 {
        let first = try hexadecimal()
        guard (0xD800...0xDFFF).contains(first) else { return first }
        guard first < 0xDC00, try next() == 0x5C, try next() == 0x75 else {
            throw wrong("half of a surrogate pair in a string")
        }
        let second = try hexadecimal()
        guard (0xDC00...0xDFFF).contains(second) else {
            throw wrong("half of a surrogate pair in a string")
        }
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
    }

    private mutating func hexadecimal() throws -> UInt32 {
        var code: UInt32 = 0
        for _ in 0..<4 {
            let point = try next()
            guard point < 0x80, let digit = Character(Unicode.Scalar(UInt8(point))).hexDigitValue
            else { throw wrong("four hexadecimal digits are expected") }
            code = code << 4 | UInt32(digit)
        }
        return code
    }

    private mutating func number() throws -> Json {
        at -= 1
        let start = at
        _ = taken("-")
        let leadsWithZero = at < text.count && text[at] == 0x30
        let whole = digits()
        var isNumber = whole > 0 && !(leadsWithZero && whole > 1)
        if at < text.count, text[at] == 0x2E {
            at += 1
            isNumber = digits() > 0 && isNumber
        }
        if at < text.count, text[at] == 0x65 || text[at] == 0x45 {
            at += 1
            if at < text.count, text[at] == 0x2B || text[at] == 0x2D {
                at += 1
            }
            isNumber = digits() > 0 && isNumber
        }
        let written = string(text[start..<at])
        guard isNumber, let value = Double(written), value.isFinite else {
            throw wrong("'\(written)' is no number, or too large")
        }
        return .number(value)
    }

    /// How many digits were taken.
    private mutating func digits() -> Int {
        let start = at
        while at < text.count, (0x30...0x39).contains(text[at]) {
            at += 1
        }
        return at - start
    }

    private mutating func word() throws -> Json {
        at -= 1
        let words: [(String, Json)] = [
            ("true", .flag(true)), ("false", .flag(false)), ("null", .null),
        ]
        for (word, value) in words where text[at...].starts(with: points(word)) {
            at += word.count
            return value
        }
        throw wrong("a value is expected")
    }
}

/// A JSON value and its place, so that whatever is wrong with it is said with the place.
struct Node {
    let value: Json
    let place: String

    func wrong(_ what: String) -> Malformed {
        Malformed(what: place.isEmpty ? what : "\(place): \(what)")
    }

    private func under(_ key: String) -> String {
        place.isEmpty ? key : "\(place).\(key)"
    }

    private func fields() throws -> [Points: Json] {
        guard case .object(let fields, _) = value else { throw wrong("an object is expected") }
        return fields
    }

    /// The value of a key that has to be there.
    func get(_ key: String) throws -> Node {
        guard let found = try fields()[points(key)] else { throw wrong("has no field '\(key)'") }
        return Node(value: found, place: under(key))
    }

    /// The value of a key, or nil where it is absent or null.
    func find(_ key: String) throws -> Node? {
        guard let found = try fields()[points(key)] else { return nil }
        if case .null = found {
            return nil
        }
        return Node(value: found, place: under(key))
    }

    /// The same object with another value of a key, or without the key.
    func with(_ key: String, _ new: Json?) throws -> Node {
        guard case .object(var fields, var order) = value else {
            throw wrong("an object is expected")
        }
        let name = points(key)
        order.removeAll { $0 == name }
        if new != nil {
            order.append(name)
        }
        fields[name] = new
        return Node(value: .object(fields, order: order), place: place)
    }

    /// Keys and values, in order.
    func entries() throws -> [(key: Points, node: Node)] {
        guard case .object(let fields, let order) = value else {
            throw wrong("an object is expected")
        }
        return order.compactMap { key in
            fields[key].map { (key, Node(value: $0, place: under(string(key)))) }
        }
    }

    func items() throws -> [Node] {
        guard case .list(let items) = value else { throw wrong("a list is expected") }
        return items.enumerated().map { Node(value: $1, place: "\(place)[\($0)]") }
    }

    func text() throws -> Points {
        guard case .text(let text) = value else { throw wrong("text is expected") }
        return text
    }

    func name() throws -> String {
        string(try text())
    }

    /// A text that is one of those known; another one would mean another picture.
    func oneOf(_ known: String...) throws -> String {
        let found = try name()
        guard known.contains(where: { points($0) == points(found) }) else {
            throw wrong(
                "'\(found)' is not known; one of \(known.joined(separator: ", ")) is expected")
        }
        return found
    }

    func flag() throws -> Bool {
        guard case .flag(let flag) = value else { throw wrong("true or false is expected") }
        return flag
    }

    func number() throws -> Double {
        guard case .number(let number) = value else { throw wrong("a number is expected") }
        return number
    }

    func whole(_ range: ClosedRange<Int>) throws -> Int {
        let found = try number()
        guard let whole = Int(exactly: found), range.contains(whole) else {
            throw wrong(
                "\(found) is no whole number from \(range.lowerBound) to \(range.upperBound)")
        }
        return whole
    }
}
