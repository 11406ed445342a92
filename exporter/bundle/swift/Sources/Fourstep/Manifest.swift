import Foundation

private let most = (1 << 53) - 1  // what every language's numbers hold
private let mostInt = Int(Int32.max)
private let mostPortBytes = 1 << 30

/// What a package says of itself, format 4.x (`docs/package-format.md`).
///
/// Keys that are not known are left out, absent ones get their defaults, values that are not known
/// are refused: they would mean another picture.
public struct Manifest: Sendable {
    public let formatVersion: String
    public let name: String
    public let backend: String
    public let scheme: String
    public let schedule: Schedule
    public let picture: PictureEntry
    /// By text encoder.
    public let tokenizers: [String: TokenizerEntry]
    /// In the order of their turns.
    let stages: [Stage]
    /// By name: graphs, and the parts of those that are cut.
    public let graphs: [String: GraphEntry]
    let golden: [Golden]
    /// The path of hard prompts and their ids, or empty.
    let goldenTokens: String
    /// The path of noise by seeds and sizes, or empty.
    let goldenNoise: String
    /// Every file but the graphs' and the manifest's own, by path.
    let files: [String: FileEntry]
    /// Anonymous memory of a process that draws, graphs opened in turn; nil: not measured.
    public let predictedPeakBytes: Int?

    /// The manifest in a file's bytes, as that of each size alone; throws `Malformed` that names the
    /// field.
    static func parse(_ bytes: Data) throws -> [(size: String, manifest: Manifest)] {
        let node = Node(value: try Json.parse(bytes), place: "")
        let version = try node.find("format_version").map { try $0.name() } ?? ""
        let minor = version.dropFirst(2)
        guard version.hasPrefix("4."), (1...4).contains(minor.count),
            minor.utf8.allSatisfy({ (0x30...0x39).contains($0) })
        else {
            throw Malformed(
                what: """
                    format version '\(version)'; this reader takes 4.x; build the package again: \
                    fourstep build RECIPE
                    """)
        }
        return try Sizes(node).all()
    }

    /// The manifest of one size; throws `Malformed`.
    static func of(_ node: Node) throws -> Manifest {
        let manifest = try Manifest(node)
        try Consistent(manifest).check()
        return manifest
    }

    private init(_ node: Node) throws {
        if let filter = try node.find("filter") {
            throw filter.wrong(
                """
                this runtime runs no filter, and would hand out what the package is not to show; draw \
                with fourstep run
                """)
        }
        formatVersion = try node.get("format_version").name()
        name = try node.get("name").name()
        backend = try node.get("backend").name()
        scheme = try node.get("scheme").name()
        schedule = try Schedule(node.get("schedule"))
        picture = try PictureEntry(node.get("picture"))
        let noise = try node.get("noise")
        _ = try noise.find("algorithm")?.oneOf("torch-cpu-randn")
        _ = try noise.find("seed_bits")?.whole(32...32)
        _ = try noise.find("block")?.whole(Noise.block...Noise.block)
        tokenizers = try named(node.get("text").get("tokenizers"), TokenizerEntry.init)
        stages = try node.get("stages").items().map(Stage.init)
        var graphs: [String: GraphEntry] = [:]
        for item in try node.get("graphs").items() {
            let graph = try GraphEntry(item)
            if graphs.updateValue(graph, forKey: graph.name) != nil {
                throw item.wrong("a second graph '\(graph.name)'")
            }
        }
        self.graphs = graphs
        let vectors = try node.get("golden")
        golden = try vectors.find("pictures")?.items().map(Golden.init) ?? []
        goldenTokens = try optionalPath(vectors.find("tokens"))
        goldenNoise = try optionalPath(vectors.find("noise"))
        var files: [String: FileEntry] = [:]
        for item in try node.get("files").items() {
            let file = try FileEntry(item)
            if files.updateValue(file, forKey: file.path) != nil {
                throw item.wrong("'\(file.path)' is listed twice")
            }
        }
        self.files = files
        predictedPeakBytes = try node.get("device").find("predicted_peak_bytes")?.whole(0...most)
    }

    /// The stage that gives the loop what it needs to go on, or nil.
    func giving(_ result: String) -> Stage? {
        stages.first { $0.results.values.contains(result) }
    }

    /// The turn of a graph, or nil.
    func stage(_ graph: String) -> Stage? {
        stages.first { $0.graph == graph }
    }

    /// How noise becomes a picture.
    public struct Schedule: Sendable {
        /// `euler` or `renoise`.
        public let mode: String
        public let sigmas: [Double]
        /// Of guidance; nil: there is none.
        public let guidanceScale: Float?
        /// The fixed negative prompt of guidance, or nil: a request may name its own.
        public let negativePrompt: String?

        init(_ node: Node) throws {
            mode = try node.get("mode").oneOf("euler", "renoise")
            sigmas = try node.get("sigmas").items().map { try $0.number() }
            guard (2...1001).contains(sigmas.count) else {
                throw try node.get("sigmas").wrong("2 to 1001 numbers are expected")
            }
            let guidance = try node.find("guidance")
            let scale = try guidance?.get("scale").number()
            if let scale, !(scale > 1 && scale <= 100) {
                throw node.wrong("guidance.scale: \(scale) is not above 1 and at most 100")
            }
            guidanceScale = scale.map { Float($0) }
            negativePrompt = try guidance?.find("negative_prompt")?.name()
        }

        public var steps: Int { sigmas.count - 1 }
        var takesNoise: Bool { mode == "renoise" }
        /// Whether a negative prompt has to be encoded.
        var takesNegative: Bool { guidanceScale != nil && negativePrompt == nil }
    }

    /// What is drawn, and the latent that it is drawn in.
    public struct PictureEntry: Sendable {
        public let widthPx: Int
        public let heightPx: Int
        public let latentChannels: Int
        public let latentScalePx: Int
        let pixels: Pixels
        /// (channels + 1, 3): factors, then the bias of each colour; or nil.
        let preview: [[Double]]?
        let previewGraph: String

        init(_ node: Node) throws {
            widthPx = try node.get("width_px").whole(1...(1 << 14))
            heightPx = try node.get("height_px").whole(1...(1 << 14))
            latentChannels = try node.get("latent_channels").whole(1...4096)
            latentScalePx = try node.get("latent_scale_px").whole(1...256)
            pixels = try Pixels(node.find("pixels"))
            preview = try node.find("preview").map { map in
                try (map.get("factors").items() + [map.get("bias")]).map { row in
                    let three = try row.items().map { try $0.number() }
                    guard three.count == 3 else { throw row.wrong("three numbers are expected") }
                    return three
                }
            }
            previewGraph = try node.find("preview_graph")?.name() ?? ""
        }

        /// (1, channels, height / scale, width / scale).
        public var latent: [Int] {
            [1, latentChannels, heightPx / latentScalePx, widthPx / latentScalePx]
        }

        var latentCount: Int { latent.reduce(1, *) }
        var image: [Int] { [1, 3, heightPx, widthPx] }
    }

    /// How a prompt becomes ids (1, tokens).
    public struct TokenizerEntry: Sendable {
        let path: String
        public let tokens: Int
        let padId: Int
        let vocabularySize: Int

        init(_ node: Node) throws {
            path = try safePath(node.get("path"))
            tokens = try node.get("tokens").whole(2...(1 << 16))
            padId = try node.get("pad_id").whole(0...mostInt)
            vocabularySize = try node.find("vocabulary_size")?.whole(1...mostInt) ?? mostInt
            _ = try node.find("cut")?.oneOf("keep closing")
            let closing = try node.find("closing_id")?.whole(0...mostInt) ?? 0
            guard max(padId, closing) < vocabularySize else {
                throw node.wrong(
                    "pad_id or closing_id is not in the vocabulary of \(vocabularySize)")
            }
        }
    }

    /// Where an input of a graph comes from.
    struct Source: Sendable {
        let kind: String
        let name: String
        let port: String
        let rowOfStep: Bool

        init(_ node: Node) throws {
            kind = try node.get("kind")
                .oneOf("tokens", "output", "negative output", "latent", "image")
            name = try node.find("name")?.name() ?? ""
            port = try node.find("port")?.name() ?? ""
            rowOfStep = try node.find("row_of_step")?.flag() ?? false
        }

        var isOutput: Bool { kind.hasSuffix("output") }
    }

    /// One graph's turn in the loop.
    struct Stage: Sendable {
        static let perPrompt = "once per prompt"
        static let twice = "twice each step"
        static let forPreviews = "for previews"

        let graph: String
        let parts: [String]
        let runs: String
        let inputs: [String: Source]
        let negativeInputs: [String: Source]
        let results: [String: String]
        let imageToImageOnly: Bool

        init(_ node: Node) throws {
            graph = try node.get("graph").name()
            parts = try node.get("parts").items().map { try $0.name() }
            runs = try node.get("runs")
                .oneOf(Self.perPrompt, "each step", Self.twice, "once", Self.forPreviews)
            inputs = try named(node.get("inputs"), Source.init)
            negativeInputs = try node.find("negative_inputs").map { try named($0, Source.init) } ?? [:]
            results =
                try node.find("results").map {
                    try named($0) { try $0.oneOf("velocity", "start", "image", "preview") }
                } ?? [:]
            imageToImageOnly = try node.find("image_to_image_only")?.flag() ?? false
            guard !parts.isEmpty else { throw node.wrong("parts: there are none") }
        }

        var isInSteps: Bool { runs == "each step" || runs == Self.twice }
        var sources: [Source] { Array(inputs.values) + Array(negativeInputs.values) }

        /// The output port that gives the loop this result; every package that was read has it.
        func port(_ result: String) -> String {
            results.first { $0.value == result }?.key ?? ""
        }
    }

    /// An input or output of a graph.
    public struct Port: Sendable {
        public let name: String
        public let shape: [Int]
        public let isInt: Bool

        init(_ node: Node) throws {
            name = try node.get("name").name()
            shape = try node.get("shape").items().map { try $0.whole(1...mostInt) }
            isInt = try node.find("dtype")?.oneOf("float32", "int32") == "int32"
            var bytes = 4
            for size in shape {
                bytes *= size  // at most 2^30 times 2^31
                guard bytes <= mostPortBytes else {
                    throw try node.get("shape").wrong("takes more than 1 GiB")
                }
            }
        }

        func takes(isInt: Bool, _ shape: [Int]) -> Bool {
            self.isInt == isInt && self.shape == shape
        }
    }

    /// A graph of the package, or a part of one that is cut.
    public struct GraphEntry: Sendable {
        public let name: String
        /// The file or folder that an engine opens.
        public let entry: String
        public let inputs: [Port]
        public let outputs: [Port]
        public let files: [FileEntry]
        /// What the backend wants to be told, in the project's words.
        public let session: [String: String]
        let graphRelative: Double
        let imagePsnrDb: Double

        init(_ node: Node) throws {
            name = try node.get("name").name()
            entry = try safePath(node.get("entry"))
            inputs = try node.get("inputs").items().map(Port.init)
            outputs = try node.get("outputs").items().map(Port.init)
            files = try node.get("files").items().map(FileEntry.init)
            session = try node.find("session").map { try named($0) { try $0.name() } } ?? [:]
            graphRelative = try node.get("tolerance").get("graph_relative").number()
            imagePsnrDb = try node.get("tolerance").get("image_psnr_db").number()
            for side in [inputs, outputs]
            where side.isEmpty || Set(side.map(\.name)).count != side.count {
                throw node.wrong("inputs or outputs: none, or two of a name")
            }
        }

        func output(_ port: String) -> Port? {
            outputs.first { $0.name == port }
        }
    }

    /// A file of the package: its size and digest.
    public struct FileEntry: Sendable {
        public let path: String
        public let bytes: Int
        public let sha256: String

        init(_ node: Node) throws {
            path = try safePath(node.get("path"))
            bytes = try node.get("bytes").whole(0...most)
            sha256 = try node.get("sha256").name()
            guard sha256.utf8.count == 64 else { throw node.wrong("sha256: 64 digits are expected") }
        }
    }

    /// A golden picture.
    struct Golden: Sendable {
        let prompt: String
        let seed: Int
        let tensors: String
        /// The first size's tensors of the same prompt and seed, of a further size, or empty.
        let like: String
        /// Tensors that are the same as another one of the file.
        let same: [String: String]

        init(_ node: Node) throws {
            prompt = try node.get("prompt").name()
            seed = try node.get("seed").whole(0...most)
            tensors = try safePath(node.get("tensors"))
            like = try optionalPath(node.find("like"))
            same = try node.find("same").map { try named($0) { try $0.name() } } ?? [:]
        }
    }
}

private func named<T>(_ node: Node, _ make: (Node) throws -> T) throws -> [String: T] {
    var found: [String: T] = [:]
    for (key, value) in try node.entries() {
        found[string(key)] = try make(value)
    }
    return found
}

/// A path that leads inside whatever folder it is taken from.
private func safePath(_ node: Node) throws -> String {
    let path = try node.name()
    let parts = points(path).split(separator: 0x2F, omittingEmptySubsequences: false)
    for part in parts {
        let isPlain = part.allSatisfy { $0 > 0x1F && $0 != 0x7F && $0 != 0x5C && $0 != 0x3A }
        if part.isEmpty || !isPlain || part.elementsEqual([0x2E]) || part.elementsEqual([0x2E, 0x2E]) {
            throw node.wrong("'\(path)' does not lead into the package")
        }
    }
    return path
}

private func optionalPath(_ node: Node?) throws -> String {
    guard let node, try !node.text().isEmpty else { return "" }
    return try safePath(node)
}
