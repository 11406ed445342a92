import Foundation

/// The conformance vectors of a package: what this runtime has to reproduce, with graphs or without.
public struct Vectors: Sendable {
    private static let longestRow = 40  // draws of 1 to so many values in a row
    private static let previewLevels = 1  // sums may be in another order

    /// How many were compared.
    public private(set) var compared = 0
    /// What differs: a line each.
    public private(set) var failures: [String] = []

    private let source: Package
    private let manifest: Manifest
    private let tokenizers: [String: Tokenizer]

    /// Compare ids, noise, steps, pixels and previews: no graph is opened. What is compared with graphs
    /// is in `init(_:by:)`.
    public init(_ source: Package) throws {
        self.source = source
        manifest = source.manifest
        tokenizers = try source.tokenizers()
        guard !manifest.golden.isEmpty else {
            throw FourstepError.package(
                """
                the package has no golden vectors to compare with; bundle it without \
                --without-golden
                """)
        }
        do {
            try compareTokens()
            try compareNoise()
            for golden in manifest.golden {
                try compare(golden, tensors(golden))
            }
        } catch let error as Malformed {
            throw FourstepError.package("golden: \(error.what); build the package again")
        }
    }

    /// Compare the recorded calls of every graph, and the golden pictures from their prompts, each within
    /// its tolerance.
    ///
    /// - Parameter engine: one that rounds nothing of its own accord: tolerances are those of exact runs.
    public init(_ source: Package, by engine: some Engine) async throws {
        self.source = source
        manifest = source.manifest
        let player = try source.player(engine)
        tokenizers = player.tokenizers
        for golden in manifest.golden {
            do {
                let recorded = try tensors(golden)
                for stage in manifest.stages {
                    for (isNear, what) in try await compared(stage, recorded, player) {
                        add(isNear, what)
                    }
                }
                let request = Request(golden.prompt, seed: UInt64(golden.seed))
                let drawn = try await player.picture(request)
                compare(drawn, golden, try recorded.bytes("pixels"))
            } catch let error as Malformed {
                throw FourstepError.package("golden: \(error.what); build the package again")
            }
        }
    }

    /// All that is recorded of a picture: of a further size, less of it is in its own file.
    private func tensors(_ golden: Manifest.Golden) throws -> Safetensors {
        let own = try Safetensors(source.read(golden.tensors))
        if golden.like.isEmpty {
            return own
        }
        return try own.with(golden.same, Safetensors(source.read(golden.like)))
    }

    private mutating func add(_ isSame: Bool, _ what: String) {
        compared += 1
        if !isSame {
            failures.append(what)
        }
    }

    private mutating func compareTokens() throws {
        if manifest.goldenTokens.isEmpty {
            return
        }
        let file = Node(value: try Json.parse(source.read(manifest.goldenTokens)), place: "")
        let prompts = try file.get("prompts").items().map { try $0.name() }
        for (name, tokenizer) in tokenizers.sorted(by: { $0.key < $1.key }) {
            let rows = try file.get("ids").get(name).items()
            let pad = Int32(manifest.tokenizers[name]?.padId ?? 0)
            guard rows.count == prompts.count else { throw file.wrong("ids: not a row for each") }
            for (prompt, row) in zip(prompts, rows) {
                let expected = try row.items().map { Int32(try $0.whole(0...Int(Int32.max))) }
                var found = try tokenizer.encode(prompt)
                while let last = found.last, last == pad {
                    found.removeLast()
                }
                add(found == expected, "ids of \(name) differ for \(quoted(prompt))")
            }
        }
    }

    private mutating func compareNoise() throws {
        if manifest.goldenNoise.isEmpty {
            return
        }
        let tensors = try Safetensors(source.read(manifest.goldenNoise))
        for name in try tensors.names() {
            let parts = name.split(separator: "/", maxSplits: 1)
            guard parts.count == 2, let seed = UInt64(parts[0]) else { continue }  // of a later format
            let expected = try tensors.floats(name)
            var noise = Noise(seed: seed)
            var found: [Float] = []
            if parts[1] == "in a row" {
                for size in 1...Self.longestRow {
                    found += noise.draw(size)
                }
            } else {
                found = noise.draw(expected.count)
            }
            add(Self.isSame(found, expected), "noise of seed \(parts[0]), \(parts[1]): differs")
        }
    }

    /// The same but for one unit in the last place: a machine's logarithm and cosine may differ.
    private static func isSame(_ found: [Float], _ expected: [Float]) -> Bool {
        found.count == expected.count
            && zip(found, expected).allSatisfy { abs($0 - $1) <= $1.ulp }
    }

    private mutating func compare(_ golden: Manifest.Golden, _ tensors: Safetensors) throws {
        let place = "picture \(quoted(golden.prompt)): "
        var texts = [golden.prompt]
        if manifest.schedule.takesNegative, !golden.prompt.isEmpty {
            texts.append("")
        }
        for stage in manifest.stages {
            for (port, input) in stage.inputs where input.kind == "tokens" {
                for (call, text) in texts.enumerated() {
                    let expected = try tensors.ints("\(stage.graph)/\(call)/in/\(port)")
                    let found = try tokenizers[input.name]?.encode(text)
                    add(found == expected, "\(place)ids of \(input.name) differ")
                }
            }
        }
        var noise = Noise(seed: UInt64(golden.seed))
        for k in 0...(manifest.schedule.takesNoise ? manifest.schedule.steps : 0) {
            let found = noise.draw(manifest.picture.latentCount)
            add(
                Self.isSame(found, try tensors.floats("noise/\(k)")), "\(place)noise \(k) differs")
        }
        try compareSteps(tensors, place)
        guard let decoder = manifest.giving("image") else { return }
        let image = try tensors.tensor("\(decoder.graph)/0/out/\(decoder.port("image"))")
        let shown = try manifest.picture.pixels.toLevels(image, decoder.graph)
        add(shown.rgb == (try tensors.bytes("pixels")), "\(place)pixels differ")
    }

    /// Each step from the latent before it and the recorded velocity.
    private mutating func compareSteps(_ tensors: Safetensors, _ place: String) throws {
        let schedule = manifest.schedule
        var latent = try tensors.floats("noise/0")
        for step in 0..<schedule.steps {
            let fresh = try schedule.takesNoise ? tensors.floats("noise/\(step + 1)") : []
            let moved = try velocity(of: step, tensors)
            let found = Steps.advance(schedule, step, latent, moved, fresh)
            latent = try tensors.floats("latent/\(step + 1)")
            add(found == latent, "\(place)step \(step + 1) differs")
            let name = "preview/\(step + 1)"
            if let map = manifest.picture.preview, try tensors.has(name) {
                let value = Tensor(latent, manifest.picture.latent)
                let shown = try manifest.picture.pixels.preview(of: value, map).rgb
                let expected = try tensors.bytes(name)
                let isNear = zip(shown, expected).allSatisfy {
                    abs(Int($0) - Int($1)) <= Self.previewLevels
                }
                add(isNear && shown.count == expected.count, "\(place)\(name) differs")
            }
        }
    }

    private func velocity(of step: Int, _ tensors: Safetensors) throws -> [Float] {
        guard let stage = manifest.giving("velocity") else { return [] }
        let port = "/out/\(stage.port("velocity"))"
        guard let scale = manifest.schedule.guidanceScale else {
            return try tensors.floats("\(stage.graph)/\(step)\(port)")
        }
        return Steps.guided(
            scale, try tensors.floats("\(stage.graph)/\(2 * step)\(port)"),
            try tensors.floats("\(stage.graph)/\(2 * step + 1)\(port)"))
    }

    /// The recorded calls of a graph, each part of which is opened once: whether the relative error of
    /// each output is within its tolerance, and what it is.
    private func compared(
        _ stage: Manifest.Stage, _ recorded: Safetensors, _ player: isolated Player
    ) throws -> [(isNear: Bool, what: String)] {
        let parts = stage.parts.compactMap { manifest.graphs[$0] }
        var calls: [[String: Tensor]] = []
        while try recorded.has("\(stage.graph)/\(calls.count)/in/\(parts[0].inputs[0].name)") {
            var inputs: [String: Tensor] = [:]
            for port in parts[0].inputs {
                let name = "\(stage.graph)/\(calls.count)/in/\(port.name)"
                inputs[port.name] = try recorded.tensor(name)
            }
            calls.append(inputs)
        }
        for part in parts {
            for (call, inputs) in calls.enumerated() {
                calls[call] = try player.run(part.name, inputs, "golden call \(call)")
            }
            player.release(part.name)
        }
        let last = parts[parts.count - 1]
        return try calls.enumerated().flatMap { call, outputs in
            try last.outputs.map { port in
                let expected = try recorded.floats("\(stage.graph)/\(call)/out/\(port.name)")
                let error = Self.relativeError(outputs[port.name]?.floats ?? [], expected)
                let what = "relative error \(error), allowed \(last.graphRelative)"
                return (error <= last.graphRelative, "\(stage.graph), call \(call): \(what)")
            }
        }
    }

    private static func relativeError(_ found: [Float], _ expected: [Float]) -> Double {
        guard found.count == expected.count else { return .infinity }
        var (apart, whole) = (0.0, 0.0)
        for (value, wanted) in zip(found, expected) {
            let difference = Double(value) - Double(wanted)
            apart += difference * difference
            whole += Double(wanted) * Double(wanted)
        }
        return (apart / max(whole, Double.leastNormalMagnitude)).squareRoot()
    }

    private mutating func compare(_ drawn: Levels, _ golden: Manifest.Golden, _ pixels: [UInt8]) {
        let squares = zip(drawn.rgb, pixels).reduce(0.0) { sum, pair in
            let apart = Double(pair.0) - Double(pair.1)
            return sum + apart * apart
        }
        let psnrDb = 10 * log10(255 * 255 * Double(pixels.count) / squares)
        let leastDb = manifest.graphs.values.map(\.imagePsnrDb).min() ?? 0
        let what = "picture \(quoted(golden.prompt)): PSNR \(psnrDb) dB, at least \(leastDb)"
        add(drawn.rgb.count == pixels.count && psnrDb >= leastDb, what)
    }
}
