import Foundation

/// Prompts to ids, as a `tokenizer.json` says: its parts are interpreted, and one that is not known is
/// refused.
public struct Tokenizer: Sendable {
    static let mostCharacters = 100_000
    private static let gpt2 = points(
        #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#)

    private let entry: Manifest.TokenizerEntry
    private let unicode: UnicodeTables
    private let normalizers: [Normalizer]
    private let splitters: [Splitter]
    private let vocabulary: any Vocabulary
    private let raw: [Added]  // cut out before a text is normalized
    private let normalized: [Added]  // and after
    private let before: [Int]
    private let after: [Int]

    /// A piece of a prompt: text, or the id of an added token.
    private enum Piece {
        case text(Points, isFirst: Bool)
        case id(Int)
    }

    private struct Added: Sendable {
        let content: Points
        let id: Int
        let stripsLeft: Bool
        let stripsRight: Bool
    }

    private enum Splitter: Sendable {
        case pattern(Pattern, keepsMatches: Bool, removes: Bool)
        case whiteSpace
        case metaspace(Points, scheme: String, splits: Bool)
        case bytes(Pattern?, leads: Bool)
    }

    /// The tokenizer in a file's bytes; throws `Malformed` for a part that is wrong or not known.
    init(_ content: Data, _ entry: Manifest.TokenizerEntry) throws {
        self.entry = entry
        let tables = try UnicodeTables.shared.get()
        unicode = tables
        let file = Node(value: try Json.parse(content), place: "")
        let steps = try file.find("normalizer").map { try Normalizer.all($0, tables) } ?? []
        normalizers = steps
        let model = try file.get("model")
        if try model.get("type").oneOf("BPE", "Unigram") == "BPE" {
            vocabulary = try Bpe(model)
        } else {
            vocabulary = try Unigram(model)
        }
        var (raw, normalized): ([Added], [Added]) = ([], [])
        var largest = vocabulary.largest
        for node in try file.find("added_tokens")?.items() ?? [] {
            let isNormalized = try node.find("normalized")?.flag() ?? false
            let token = try Self.added(node, isNormalized ? steps : [], tables)
            largest = max(largest, token.id)
            if isNormalized {
                normalized.append(token)
            } else {
                raw.append(token)
            }
        }
        self.raw = raw.filter { !$0.content.isEmpty }
        self.normalized = normalized.filter { !$0.content.isEmpty }
        splitters = try file.find("pre_tokenizer").map { try Self.splitters($0, tables) } ?? []
        let around = try file.find("post_processor").map(Self.surroundings)
        before = around?.0 ?? []
        after = around?.1 ?? []
        largest = max(largest, (before + after).max() ?? 0)
        if largest >= entry.vocabularySize {
            throw Malformed(
                what: """
                    has ids up to \(largest) and the manifest allows \(entry.vocabularySize); build \
                    the package again
                    """)
        }
    }

    /// Ids of a prompt (1, tokens): the first of a long one and its closing one, or padded.
    func encode(_ prompt: String) throws -> [Int32] {
        row(of: try ids(prompt))
    }

    /// Cut, or padded, to as many ids as the encoder reads.
    func row(of all: [Int]) -> [Int32] {
        var row = all.prefix(entry.tokens).map { Int32($0) }
        if all.count > entry.tokens, let last = all.last {
            row[entry.tokens - 1] = Int32(last)
        }
        row += Array(repeating: Int32(entry.padId), count: entry.tokens - row.count)
        return row
    }

    /// All ids of a prompt, with those before and after it, neither cut nor padded.
    func ids(_ prompt: String) throws -> [Int] {
        var found = before
        for piece in cut(points(prompt), isFirst: true, raw) {
            switch piece {
            case .id(let id):
                found.append(id)
            case .text(let text, let isFirst):
                let ready = normalizers.reduce(text) { $1.apply($0, unicode) }
                for part in cut(ready, isFirst: isFirst, normalized) {
                    found += try ids(part)
                }
            }
        }
        return found + after
    }

    private func ids(_ piece: Piece) throws -> [Int] {
        guard case .text(let text, let isFirst) = piece else {
            if case .id(let id) = piece { return [id] }
            return []
        }
        var words: [(text: Points, isFirst: Bool)] = [(text, isFirst)]
        for splitter in splitters {
            var smaller: [(text: Points, isFirst: Bool)] = []
            for word in words {
                let parts = split(word.text, word.isFirst, splitter)
                for (place, part) in parts.enumerated() where !part.isEmpty {
                    smaller.append((part, word.isFirst && place == 0))
                }
            }
            words = smaller
        }
        var found: [Int] = []
        for word in words where !word.text.isEmpty {
            found += try vocabulary.encode(word.text)
        }
        return found
    }

    /// A text with added tokens cut out: the leftmost, and of those the longest.
    private func cut(_ text: Points, isFirst: Bool, _ tokens: [Added]) -> [Piece] {
        var found: [Piece] = []
        var (rest, at) = (0, 0)
        while at < text.count {
            let here = tokens.filter { text[at...].starts(with: $0.content) }
            guard let token = here.max(by: { $0.content.count < $1.content.count }) else {
                at += 1
                continue
            }
            var start = at
            while token.stripsLeft, start > rest, unicode.isWhiteSpace(text[start - 1]) {
                start -= 1
            }
            at += token.content.count
            if start > rest {
                found.append(.text(Array(text[rest..<start]), isFirst: isFirst && rest == 0))
            }
            found.append(.id(token.id))
            while token.stripsRight, at < text.count, unicode.isWhiteSpace(text[at]) {
                at += 1
            }
            rest = at
        }
        if rest < text.count {
            found.append(.text(Array(text[rest...]), isFirst: isFirst && rest == 0))
        }
        return found
    }

    private func split(_ text: Points, _ isFirst: Bool, _ splitter: Splitter) -> [Points] {
        switch splitter {
        case .pattern(let pattern, let keepsMatches, let removes):
            return pattern.parts(text)
                .filter { !removes || $0.isMatch == keepsMatches }
                .map(\.text)
        case .whiteSpace:
            return text.split(whereSeparator: unicode.isWhiteSpace).map(Array.init)
        case .metaspace(let mark, let scheme, let splits):
            let marked = text.flatMap { $0 == 0x20 ? mark : [$0] }
            let leads = scheme == "always" || (scheme == "first" && isFirst)
            let whole = leads && !marked.starts(with: mark) ? mark + marked : marked
            return splits ? Self.beforeEach(mark, whole) : [whole]
        case .bytes(let pattern, let leads):
            let whole = leads && text.first != 0x20 ? [0x20] + text : text
            let parts = pattern?.parts(whole).map(\.text) ?? [whole]
            return parts.map { part in string(part).utf8.map { Self.letters[Int($0)] } }
        }
    }

    /// A text cut before each mark.
    private static func beforeEach(_ mark: Points, _ text: Points) -> [Points] {
        var found: [Points] = []
        var start = 0
        for at in text.indices.dropFirst() where text[at...].starts(with: mark) {
            found.append(Array(text[start..<at]))
            start = at
        }
        found.append(Array(text[start...]))
        return found
    }

    /// A letter that can be seen for each byte: its own, or one from U+0100 on (GPT-2).
    private static let letters: Points = {
        var other: UInt32 = 255
        return (0..<256).map { byte in
            let isSeen =
                (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || byte >= 0xAE
            other += isSeen ? 0 : 1
            return isSeen ? UInt32(byte) : other
        }
    }()

    private static func added(
        _ node: Node, _ steps: [Normalizer], _ unicode: UnicodeTables
    ) throws -> Added {
        if let single = try node.find("single_word"), try single.flag() {
            throw single.wrong("is not known")
        }
        return Added(
            content: steps.reduce(try node.get("content").text()) { $1.apply($0, unicode) },
            id: try node.get("id").whole(0...Int(Int32.max)),
            stripsLeft: try node.find("lstrip")?.flag() ?? false,
            stripsRight: try node.find("rstrip")?.flag() ?? false)
    }

    private static func splitters(_ node: Node, _ unicode: UnicodeTables) throws -> [Splitter] {
        switch try node.get("type").name() {
        case "Sequence":
            return try node.get("pretokenizers").items().flatMap { try splitters($0, unicode) }
        case "Split":
            let removes = try node.get("behavior").oneOf("Removed", "Isolated") == "Removed"
            let pattern = try Pattern(node.get("pattern"), unicode)
            let keeps = try node.get("invert").flag()
            return [.pattern(pattern, keepsMatches: keeps, removes: removes)]
        case "WhitespaceSplit":
            return [.whiteSpace]
        case "Metaspace":
            let scheme =
                try node.find("prepend_scheme")?.oneOf("always", "first", "never") ?? "always"
            let splits = try node.find("split")?.flag() ?? true
            let mark = try node.get("replacement").text()
            return [.metaspace(mark, scheme: scheme, splits: splits)]
        case "ByteLevel":
            let cuts = try node.find("use_regex")?.flag() ?? true
            let pattern = try cuts ? Pattern(expression: gpt2, unicode) : nil
            return [.bytes(pattern, leads: try node.get("add_prefix_space").flag())]
        case let other:
            throw try node.get("type").wrong("'\(other)' is not known")
        }
    }

    private static func surroundings(_ node: Node) throws -> ([Int], [Int]) {
        let ids = 0...Int(Int32.max)
        switch try node.get("type").name() {
        case "RobertaProcessing", "BertProcessing":
            let pairs = try [node.get("cls"), node.get("sep")].map { pair -> Int in
                let items = try pair.items()
                guard items.count == 2 else { throw pair.wrong("a token and its id are expected") }
                return try items[1].whole(ids)
            }
            return ([pairs[0]], [pairs[1]])
        case "TemplateProcessing":
            var (before, after): ([Int], [Int]) = ([], [])
            var isBehind = false
            for item in try node.get("single").items() {
                guard let token = try item.find("SpecialToken") else {
                    guard !isBehind, try item.get("Sequence").get("id").name() == "A" else {
                        throw item.wrong("one sequence A is expected")
                    }
                    isBehind = true
                    continue
                }
                let special = try node.get("special_tokens").get(token.get("id").name())
                let found = try special.get("ids").items().map { try $0.whole(ids) }
                before += isBehind ? [] : found
                after += isBehind ? found : []
            }
            guard isBehind else {
                throw try node.get("single").wrong("one sequence A is expected")
            }
            return (before, after)
        case let other:
            throw try node.get("type").wrong("'\(other)' is not known")
        }
    }

    /// Throw for a text longer than any encoder could read.
    static func check(_ prompt: String, field: String) throws {
        let count = prompt.unicodeScalars.count
        if count > mostCharacters {
            throw FourstepError.request(
                field: field, "has \(count) characters: at most \(mostCharacters)")
        }
    }
}
