/// A piece of a text, and whether it is a match of a pattern.
struct Match {
    let text: Points
    let isMatch: Bool
}

/// What a tokenizer looks for: a text, or a regular expression over our own tables.
///
/// Of expressions: alternatives of characters, `\s \S \p{L} \p{N}`, classes of those, `+ * ?` and
/// `{n,m}`, and `(?!x)` of one character. Swift's own have another Unicode in them, so anything else is
/// refused rather than handed on.
struct Pattern: Sendable {
    private enum Item: Sendable {
        case range(ClosedRange<UInt32>)
        case space, other, letter, number
    }

    /// One character of a set, so and so often.
    private struct Atom: Sendable {
        var items: [Item] = []
        var isNegated = false
        var isRefusal = false  // (?!x): matches where x does not come next
        var least = 1
        var most = 1
    }

    private let alternatives: [[Atom]]
    private let unicode: UnicodeTables

    init(_ node: Node, _ unicode: UnicodeTables) throws {
        if let text = try node.find("String") {
            guard try !text.text().isEmpty else { throw text.wrong("is empty") }
            let atoms = try text.text().map { Atom(items: [.range($0...$0)]) }
            self.init(alternatives: [atoms], unicode)
        } else {
            try self.init(expression: node.get("Regex").text(), unicode)
        }
    }

    /// Throws `Malformed` for an expression with anything else in it.
    init(expression: Points, _ unicode: UnicodeTables) throws {
        var parser = Parser(pattern: expression)
        self.init(alternatives: try parser.alternatives(), unicode)
    }

    private init(alternatives: [[Atom]], _ unicode: UnicodeTables) {
        self.alternatives = alternatives
        self.unicode = unicode
    }

    /// The matches, and what lies between them.
    func parts(_ text: Points) -> [Match] {
        var found: [Match] = []
        var (rest, at) = (0, 0)
        while at < text.count {
            guard let end = matchEnd(text, at), end > at else {
                at += 1
                continue
            }
            if rest < at {
                found.append(Match(text: Array(text[rest..<at]), isMatch: false))
            }
            found.append(Match(text: Array(text[at..<end]), isMatch: true))
            (rest, at) = (end, end)
        }
        if rest < text.count {
            found.append(Match(text: Array(text[rest...]), isMatch: false))
        }
        return found
    }

    func replaced(_ text: Points, _ content: Points) -> Points {
        parts(text).flatMap { $0.isMatch ? content : $0.text }
    }

    /// Where a match that begins at `from` ends, or nil: the first alternative that does.
    private func matchEnd(_ text: Points, _ from: Int) -> Int? {
        for atoms in alternatives {
            if let end = matchEnd(atoms[...], text, from) {
                return end
            }
        }
        return nil
    }

    private func matchEnd(_ atoms: ArraySlice<Atom>, _ text: Points, _ from: Int) -> Int? {
        guard let atom = atoms.first else { return from }
        let rest = atoms.dropFirst()
        if atom.isRefusal {
            return has(atom, text, from) ? nil : matchEnd(rest, text, from)
        }
        var count = 0
        while count < atom.most, has(atom, text, from + count) {
            count += 1
        }
        while count >= atom.least {  // as many as there are, then fewer
            if let end = matchEnd(rest, text, from + count) {
                return end
            }
            count -= 1
        }
        return nil
    }

    private func has(_ atom: Atom, _ text: Points, _ place: Int) -> Bool {
        guard place < text.count else { return false }
        let point = text[place]
        let found = atom.items.contains { item in
            switch item {
            case .range(let range): range.contains(point)
            case .space: unicode.isSpace(point)
            case .other: !unicode.isSpace(point)
            case .letter: unicode.isLetter(point)
            case .number: unicode.isNumber(point)
            }
        }
        return found != atom.isNegated
    }

    private struct Parser {
        let pattern: Points
        private var at = 0

        init(pattern: Points) {
            self.pattern = pattern
        }

        mutating func alternatives() throws -> [[Atom]] {
            var found: [[Atom]] = [[]]
            while at < pattern.count {
                if taken("|") {
                    found.append([])
                } else {
                    found[found.count - 1].append(try atom())
                }
            }
            return found
        }

        private func unknown() -> Malformed {
            Malformed(
                what: "the expression '\(string(pattern))' is not known from character \(at) on")
        }

        private mutating func taken(_ part: String) -> Bool {
            let isThere = pattern[at...].starts(with: points(part))
            at += isThere ? part.unicodeScalars.count : 0
            return isThere
        }

        private mutating func expect(_ part: String) throws {
            guard taken(part) else { throw unknown() }
        }

        private mutating func atom() throws -> Atom {
            var atom = Atom()
            if taken("(?!") {
                atom.isRefusal = true
                atom.items.append(try item(inClass: false))
                try expect(")")
                return atom
            }
            if taken("[") {
                atom.isNegated = taken("^")
                repeat {
                    atom.items.append(try item(inClass: true))
                } while !taken("]")
            } else {
                atom.items.append(try item(inClass: false))
            }
            try quantify(&atom)
            return atom
        }

        private mutating func quantify(_ atom: inout Atom) throws {
            if taken("+") {
                atom.most = Int.max
            } else if taken("*") {
                (atom.least, atom.most) = (0, Int.max)
            } else if taken("?") {
                atom.least = 0
            } else if taken("{") {
                atom.least = try count()
                atom.most = atom.least
                if taken(",") {
                    let isOpen = at < pattern.count && pattern[at] == 0x7D
                    atom.most = try isOpen ? Int.max : count()
                }
                try expect("}")
            }
            if at < pattern.count, points("+*?{").contains(pattern[at]) {
                throw unknown()
            }
        }

        private mutating func count() throws -> Int {
            let start = at
            while at < pattern.count, at < start + 6, (0x30...0x39).contains(pattern[at]) {
                at += 1
            }
            guard let count = Int(string(pattern[start..<at])) else { throw unknown() }
            return count
        }

        /// A character, a range of them in a class, or a class of Unicode.
        private mutating func item(inClass: Bool) throws -> Item {
            if taken("\\p{L}") { return .letter }
            if taken("\\p{N}") { return .number }
            if taken("\\s") { return .space }
            if taken("\\S") { return .other }
            let first = try character(inClass: inClass)
            let isRange =
                inClass && at + 1 < pattern.count && pattern[at] == 0x2D && pattern[at + 1] != 0x5D
            guard isRange else { return .range(first...first) }
            at += 1
            let last = try character(inClass: true)
            guard first <= last else { throw unknown() }
            return .range(first...last)
        }

        private mutating func character(inClass: Bool) throws -> UInt32 {
            let isEscaped = taken("\\")
            guard at < pattern.count else { throw unknown() }
            let point = pattern[at]
            if isEscaped {
                let letters = points("ntrfv")
                let controls: Points = [0x0A, 0x09, 0x0D, 0x0C, 0x0B]
                if let place = letters.firstIndex(of: point) {
                    at += 1
                    return controls[place]
                }
                let isPunctuation = points("\\|.^$*+?()[]{}-/&'\"<>#:,=!~`@%;_ ").contains(point)
                guard isPunctuation else { throw unknown() }
            } else if points(inClass ? "[]^&" : "()[]{}.^$*+?|").contains(point) {
                throw unknown()
            }
            at += 1
            return point
        }
    }
}
