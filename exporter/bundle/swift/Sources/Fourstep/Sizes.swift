/// The sizes of pictures that a package draws, and its manifest as that of one of them alone.
///
/// A manifest is that of its first size; what further sizes have of their own stands beside it.
struct Sizes {
    private static let most = 31  // beside the first
    private static let pixels = 1...(1 << 14)

    private let whole: Node
    private let sizes: [Node]
    /// Files by path. A path is taken by its code points: strings compare canonically.
    private let listed: [Points: Json]
    /// The paths of those that only further sizes have.
    private let left: Set<Points>

    init(_ whole: Node) throws {
        let sizes = try whole.find("sizes")?.items() ?? []
        guard sizes.count <= Self.most else {
            throw whole.wrong("sizes: \(sizes.count) of them; at most \(Self.most)")
        }
        let beside = try whole.get("files").items()
        let ofGraphs = try whole.get("graphs").items().flatMap { try $0.get("files").items() }
        var listed: [Points: Json] = [:]
        for file in beside + ofGraphs {
            let path = try file.get("path").text()
            listed[path] = file.value
        }
        let graphs = try sizes.flatMap { try $0.get("graphs").items() }
        let named = try graphs.flatMap { try $0.get("files").items() }.map { try $0.text() }
        self.whole = whole
        self.sizes = sizes
        self.listed = listed
        left = Set(try beside.map { try $0.get("path").text() }).intersection(named)
    }

    /// The manifest of each size alone, with the size as it is written, such as `768x512`; the first one
    /// first. Throws `Malformed` that names the field.
    func all() throws -> [(size: String, manifest: Manifest)] {
        let first = try Manifest.of(alone())
        var found = [(size: try Self.written(whole.get("picture")), manifest: first)]
        for size in sizes {
            do {
                let name = try Self.written(size)
                if found.contains(where: { $0.size == name }) {
                    throw Malformed(what: "\(name) is there already")
                }
                found.append((size: name, manifest: try Manifest.of(at(size))))
            } catch let error as Malformed {
                let isPlaced = error.what.hasPrefix(size.place)
                throw Malformed(what: isPlaced ? error.what : "\(size.place): \(error.what)")
            }
        }
        return found
    }

    private static func written(_ node: Node) throws -> String {
        let width = try node.get("width_px").whole(pixels)
        let height = try node.get("height_px").whole(pixels)
        return "\(width)x\(height)"
    }

    /// Of the first size, without what only others have.
    private func alone() throws -> Node {
        let files = try whole.get("files").items().filter { file in
            let path = try file.get("path").text()
            return !left.contains(path)
        }
        return try whole.with("files", .list(files.map(\.value)))
    }

    /// Of a further size: its own graphs in place of those that they stand in for.
    private func at(_ size: Node) throws -> Node {
        var own: [Points: Node] = [:]
        for graph in try size.get("graphs").items() {
            let name = try graph.get("name").text()
            if own.updateValue(graph, forKey: name) != nil {
                throw graph.wrong("'\(string(name))' is there twice")
            }
        }
        var graphs: [Json] = []
        for graph in try whole.get("graphs").items() {
            let name = try graph.get("name").text()
            let other = own.removeValue(forKey: name)
            graphs.append(try other.map { try standingIn(graph, $0) } ?? graph.value)
        }
        if let name = own.keys.first {
            throw size.wrong("there is no graph '\(string(name))'")
        }
        let picture = try whole.get("picture")
            .with("width_px", size.get("width_px").value)
            .with("height_px", size.get("height_px").value)
        return try alone()
            .with("graphs", .list(graphs))
            .with("picture", picture.value)
            .with("golden", Self.only("pictures", size))
            .with("device", Self.only("predicted_peak_bytes", size))
    }

    private func standingIn(_ graph: Node, _ other: Node) throws -> Json {
        let first = try graph.get("files").items().map { try $0.get("path").text() }
        let able = left.union(first)
        let files = try other.get("files").items().map { node -> Json in
            let path = try node.text()
            guard able.contains(path), let file = listed[path] else {
                throw node.wrong("'\(string(path))' is no file of this graph")
            }
            return file
        }
        var found = try graph.with("session", nil)
        for (key, node) in try other.entries() {
            found = try found.with(string(key), node.value)
        }
        return try found.with("files", .list(files)).value
    }

    /// An object that has one key of another, if that has it.
    private static func only(_ key: String, _ node: Node) throws -> Json {
        guard let found = try node.find(key) else { return .object([:], order: []) }
        return .object([points(key): found.value], order: [points(key)])
    }
}
