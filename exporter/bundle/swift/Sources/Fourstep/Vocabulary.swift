/// What makes ids of a word: the model of a tokenizer's file.
protocol Vocabulary: Sendable {
    /// The largest id of its tokens.
    var largest: Int { get }

    /// The ids of a word that is not empty.
    func encode(_ word: Points) throws -> [Int]
}

/// Byte-pair encoding (Sennrich et al. 2016): a word's characters, merged by the rank of pairs.
struct Bpe: Vocabulary {
    private struct Pair: Hashable, Sendable {
        let left: Int
        let right: Int
    }

    private struct Merge: Sendable {
        let rank: Int
        let id: Int
    }

    private var ids: [Points: Int] = [:]
    private var merges: [Pair: Merge] = [:]
    private let prefix: Points
    private let suffix: Points
    private var unknown: Int?  // none: such characters are left out
    private let fusesUnknown: Bool
    private let ignoresMerges: Bool

    init(_ model: Node) throws {
        for (key, value) in try model.get("vocab").entries() {
            ids[key] = try value.whole(0...Int(Int32.max))
        }
        prefix = try model.find("continuing_subword_prefix")?.text() ?? []
        suffix = try model.find("end_of_word_suffix")?.text() ?? []
        fusesUnknown = try model.find("fuse_unk")?.flag() ?? false
        ignoresMerges = try model.find("ignore_merges")?.flag() ?? false
        if let dropout = try model.find("dropout"), try dropout.number() != 0 {
            throw dropout.wrong("a prompt has one row of ids: none is expected")
        }
        if let fallback = try model.find("byte_fallback"), try fallback.flag() {
            throw fallback.wrong("is not known of BPE")
        }
        unknown = try model.find("unk_token").map { try id($0, $0.text()) }
        for (rank, node) in try model.get("merges").items().enumerated() {
            let (left, right) = try Self.halves(node)
            let bare = right.starts(with: prefix) ? Array(right.dropFirst(prefix.count)) : right
            let pair = Pair(left: try id(node, left), right: try id(node, right))
            merges[pair] = Merge(rank: rank, id: try id(node, left + bare))
        }
    }

    private static func halves(_ node: Node) throws -> (Points, Points) {
        let parts: [Points]
        if case .text(let text) = node.value {
            parts = text.split(separator: 0x20, omittingEmptySubsequences: false).map(Array.init)
        } else {
            parts = try node.items().map { try $0.text() }
        }
        guard parts.count == 2 else { throw node.wrong("two tokens are expected") }
        return (parts[0], parts[1])
    }

    private func id(_ node: Node, _ token: Points) throws -> Int {
        guard let id = ids[token] else {
            throw node.wrong("'\(string(token))' is not in the vocabulary")
        }
        return id
    }

    var largest: Int { ids.values.max() ?? 0 }

    func encode(_ word: Points) -> [Int] {
        if ignoresMerges, let id = ids[word] {
            return [id]
        }
        var row = symbols(word)
        let count = row.count
        var after = Array(1...(count + 1))
        var before = Array(-1..<count)
        var queue = Heap()
        func offer(_ left: Int, _ right: Int) {
            guard left >= 0, right < count,
                let merge = merges[Pair(left: row[left], right: row[right])]
            else { return }
            queue.push(Heap.Entry(rank: merge.rank, place: left))
        }
        for i in 0..<count {
            offer(i, i + 1)
        }
        while let next = queue.pop() {
            let left = next.place
            let right = after[left]
            guard row[left] >= 0, right < count,
                let merge = merges[Pair(left: row[left], right: row[right])],
                merge.rank == next.rank
            else { continue }  // one of the two was merged meanwhile
            row[left] = merge.id
            row[right] = -1
            after[left] = after[right]
            if after[left] < count {
                before[after[left]] = left
            }
            offer(before[left], left)
            offer(left, after[left])
        }
        return row.filter { $0 >= 0 }
    }

    private func symbols(_ word: Points) -> [Int] {
        var found: [Int] = []
        var wasUnknown = false
        for (place, point) in word.enumerated() {
            var symbol: Points = place == 0 ? [] : prefix
            symbol.append(point)
            if place == word.count - 1 {
                symbol += suffix
            }
            if let id = ids[symbol] {
                found.append(id)
                wasUnknown = false
            } else {
                if let unknown, !(wasUnknown && fusesUnknown) {
                    found.append(unknown)
                }
                wasUnknown = true
            }
        }
        return found
    }

    /// Merges to be made, the lowest rank first, and of equal ones the leftmost.
    private struct Heap {
        struct Entry {
            let rank: Int
            let place: Int

            func precedes(_ other: Entry) -> Bool {
                (rank, place) < (other.rank, other.place)
            }
        }

        private var entries: [Entry] = []

        mutating func push(_ entry: Entry) {
            entries.append(entry)
            var child = entries.count - 1
            while child > 0, entries[child].precedes(entries[(child - 1) / 2]) {
                entries.swapAt(child, (child - 1) / 2)
                child = (child - 1) / 2
            }
        }

        mutating func pop() -> Entry? {
            guard let first = entries.first, let last = entries.popLast() else { return nil }
            if entries.isEmpty {
                return first
            }
            entries[0] = last
            var parent = 0
            while true {
                var least = parent
                for child in [2 * parent + 1, 2 * parent + 2]
                where child < entries.count && entries[child].precedes(entries[least]) {
                    least = child
                }
                if least == parent {
                    return first
                }
                entries.swapAt(parent, least)
                parent = least
            }
        }
    }
}

/// The unigram model (Kudo 2018): the pieces of a word whose log probabilities sum up to most.
struct Unigram: Vocabulary {
    private static let unknownPenalty = 10.0

    private var ids: [Points: Int] = [:]
    private var scores: [Double] = []
    private let unknown: Int?
    private var unknownScore = 0.0
    private var longest = 0

    init(_ model: Node) throws {
        for (id, node) in try model.get("vocab").items().enumerated() {
            let piece = try node.items()
            guard piece.count == 2, try !piece[0].text().isEmpty else {
                throw node.wrong("a piece and its score are expected")
            }
            let text = try piece[0].text()
            ids[text] = id
            scores.append(try piece[1].number())
            longest = max(longest, text.count)
        }
        if let fallback = try model.find("byte_fallback"), try fallback.flag() {
            throw fallback.wrong("is not known of Unigram")
        }
        unknown = try model.find("unk_id")?.whole(0...max(0, scores.count - 1))
        unknownScore = (scores.min() ?? 0) - Self.unknownPenalty
    }

    var largest: Int { max(0, scores.count - 1) }

    private struct Best {
        var start = -1
        var id = -1  // -1: not known
        var score = 0.0
    }

    func encode(_ word: Points) throws -> [Int] {
        var best = [Best](repeating: Best(), count: word.count + 1)
        func offer(_ from: Int, _ end: Int, _ id: Int, _ score: Double) {
            let sum = score + best[from].score
            if best[end].start < 0 || sum > best[end].score {
                best[end] = Best(start: from, id: id, score: sum)
            }
        }
        for from in word.indices {
            var hasSingle = false
            for end in (from + 1)...max(from + 1, min(from + longest, word.count)) {
                if let id = ids[Array(word[from..<end])] {
                    offer(from, end, id, scores[id])
                    hasSingle = hasSingle || end == from + 1
                }
            }
            if !hasSingle {
                offer(from, from + 1, unknown ?? -1, unknownScore)
            }
        }
        let isUnknown = { (end: Int) in best[end].id == unknown ?? -1 }
        var found: [Int] = []
        var end = word.count
        while end > 0 {
            var from = best[end].start
            while isUnknown(end), from > 0, isUnknown(from) {
                from = best[from].start  // what is not known in a row is one piece
            }
            found.append(try id(Array(word[from..<end])))
            end = from
        }
        return found.reversed()
    }

    private func id(_ piece: Points) throws -> Int {
        guard let id = ids[piece] ?? unknown else {
            throw FourstepError.request(
                field: "prompt", "\(quoted(string(piece))) is not in the vocabulary")
        }
        return id
    }
}
