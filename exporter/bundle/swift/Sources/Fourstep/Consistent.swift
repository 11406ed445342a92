/// A manifest's fields against each other: what a record's own types cannot say.
struct Consistent {
    private let manifest: Manifest
    private let picture: Manifest.PictureEntry

    init(_ manifest: Manifest) {
        self.manifest = manifest
        picture = manifest.picture
    }

    /// Throws `Malformed` that names the field which contradicts the others.
    func check() throws {
        try checkSchedule()
        try checkPicture()
        try checkFiles()
        let used = manifest.stages.flatMap(\.parts)
        try need(
            used.count == manifest.graphs.count && Set(used) == Set(manifest.graphs.keys),
            "stages: their parts \(used) are not the graphs, each once")
        var given: [String: Manifest.Stage] = [:]
        for (index, stage) in manifest.stages.enumerated() {
            try check(stage, "stages[\(index)]", given)
            given[stage.graph] = stage
        }
        try checkResults()
        try checkPreviewGraph()
    }

    private func need(_ holds: Bool, _ problem: @autoclosure () -> String) throws {
        if !holds {
            throw Malformed(what: problem())
        }
    }

    private func checkSchedule() throws {
        let sigmas = manifest.schedule.sigmas
        let falls = zip(sigmas, sigmas.dropFirst()).allSatisfy { $0 > $1 }
        try need(
            falls && sigmas[0] <= 1 && sigmas[sigmas.count - 1] == 0,
            "schedule.sigmas: \(sigmas) do not fall from at most 1 to 0")
        let runs = manifest.schedule.guidanceScale == nil ? "each step" : Manifest.Stage.twice
        for stage in manifest.stages where stage.isInSteps {
            try need(
                stage.runs == runs,
                "stages: '\(stage.runs)' does not go with schedule.guidance")
        }
        let kinds = Set(manifest.stages.flatMap(\.sources).map(\.kind))
        try need(
            kinds.contains("negative output") == manifest.schedule.takesNegative,
            "schedule.guidance.negative_prompt: does not go with the sources of the stages")
    }

    private func checkPicture() throws {
        let scale = picture.latentScalePx
        try need(
            picture.widthPx % scale == 0 && picture.heightPx % scale == 0,
            "picture: \(picture.widthPx) x \(picture.heightPx) is no multiple of \(scale)")
        try need(
            picture.preview.map { $0.count == picture.latentChannels + 1 } ?? true,
            "picture.preview.factors: not a row for each of the channels")
    }

    /// Every path is among the digests, and none of them twice.
    private func checkFiles() throws {
        var seen = Set(manifest.files.keys)
        for graph in manifest.graphs.values {
            for file in graph.files {
                try need(seen.insert(file.path).inserted, "files: '\(file.path)' is listed twice")
            }
            let own = graph.files.map(\.path)
            try need(
                own.contains { $0 == graph.entry || $0.hasPrefix(graph.entry + "/") },
                "graphs: '\(graph.entry)' is not among the files of \(graph.name)")
        }
        var named = manifest.tokenizers.values.map(\.path) + manifest.golden.map(\.tensors)
        named += manifest.golden.map(\.like)
        named += [manifest.goldenTokens, manifest.goldenNoise]
        named.removeAll(where: \.isEmpty)
        for path in named {
            try need(manifest.files[path] != nil, "files: '\(path)' is not among them")
        }
    }

    private func check(
        _ stage: Manifest.Stage, _ place: String, _ given: [String: Manifest.Stage]
    ) throws {
        try need(given[stage.graph] == nil, "\(place).graph: has a turn already")
        let parts = stage.parts.compactMap { manifest.graphs[$0] }
        for (before, after) in zip(parts, parts.dropFirst()) {
            try need(
                before.outputs.count == after.inputs.count
                    && after.inputs.allSatisfy { port in
                        before.output(port.name)?.takes(isInt: port.isInt, port.shape) ?? false
                    },
                "\(place).parts: \(after.name) does not take what \(before.name) gives")
        }
        let isTwice = stage.runs == Manifest.Stage.twice
        try need(
            isTwice || stage.negativeInputs.isEmpty,
            "\(place).negative_inputs: there are some, and it runs \(stage.runs)")
        for sources in isTwice ? [stage.inputs, stage.negativeInputs] : [stage.inputs] {
            try need(
                Set(sources.keys) == Set(parts[0].inputs.map(\.name)),
                "\(place).inputs: \(sources.keys.sorted()) are not those of \(parts[0].name)")
            for port in parts[0].inputs {
                if let source = sources[port.name] {
                    try check(stage, source, port, "\(place).inputs.\(port.name)", given)
                }
            }
        }
        try checkResults(stage, parts[parts.count - 1], place)
    }

    /// What an input is fed from is there in its turn, and has the shape that it takes.
    private func check(
        _ stage: Manifest.Stage, _ source: Manifest.Source, _ port: Manifest.Port,
        _ place: String, _ given: [String: Manifest.Stage]
    ) throws {
        let fits: Bool
        switch source.kind {
        case "tokens":
            let entry = manifest.tokenizers[source.name]
            try need(
                entry != nil && stage.runs == Manifest.Stage.perPrompt,
                "\(place): no tokenizer '\(source.name)' for what runs \(stage.runs)")
            fits = port.takes(isInt: true, [1, entry?.tokens ?? 0])
        case "latent":
            try need(
                stage.runs != Manifest.Stage.perPrompt, "\(place): there is no latent yet")
            fits = port.takes(isInt: false, picture.latent)
        case "image":
            try need(
                stage.imageToImageOnly && stage.runs == "once",
                "\(place): only a stage of image to image that runs once has an image")
            fits = port.takes(isInt: false, picture.image)
        default:
            let fed = try output(stage, source, place, given)
            var shape = fed.shape
            if source.rowOfStep {
                try need(
                    stage.isInSteps && shape.first == manifest.schedule.steps,
                    "\(place): \(shape) has no row for each step")
                shape[0] = 1
            }
            fits = port.takes(isInt: fed.isInt, shape)
        }
        try need(fits, "\(place): takes another shape or type than it gets from \(source.kind)")
    }

    private func output(
        _ stage: Manifest.Stage, _ source: Manifest.Source, _ place: String,
        _ given: [String: Manifest.Stage]
    ) throws -> Manifest.Port {
        try need(
            source.kind == "output" || stage.runs == Manifest.Stage.twice,
            "\(place): only what runs twice each step takes something of the negative prompt")
        guard let before = given[source.name], let last = before.parts.last,
            let port = manifest.graphs[last]?.output(source.port)
        else {
            throw Malformed(
                what: "\(place): no output '\(source.port)' of a graph '\(source.name)' before it")
        }
        try need(
            before.runs == Manifest.Stage.perPrompt,
            "\(place): '\(source.name)' runs \(before.runs); outputs of once per prompt alone are kept"
        )
        return port
    }

    private func checkResults(
        _ stage: Manifest.Stage, _ last: Manifest.GraphEntry, _ place: String
    ) throws {
        try need(
            stage.runs == Manifest.Stage.perPrompt || stage.results.count == 1,
            "\(place).results: what runs '\(stage.runs)' gives the loop one")
        for (name, result) in stage.results {
            let isLatent = result == "velocity" || result == "start"
            let shape = isLatent ? picture.latent : picture.image
            try need(
                last.output(name)?.takes(isInt: false, shape) ?? false,
                "\(place).results.\(name): no output of the shape of the \(result)")
            try need(
                (result == "velocity") == stage.isInSteps
                    && (result == "preview") == (stage.runs == Manifest.Stage.forPreviews)
                    && (result == "start") == stage.imageToImageOnly,
                "\(place).runs: '\(stage.runs)' does not give the \(result)")
        }
    }

    private func checkResults() throws {
        for (result, least) in [("velocity", 1), ("image", 1), ("start", 0), ("preview", 0)] {
            let found = manifest.stages.filter { $0.results.values.contains(result) }.count
            try need(
                (least...1).contains(found),
                "stages: \(found) of them give the \(result); one has to")
        }
    }

    private func checkPreviewGraph() throws {
        let name = picture.previewGraph
        try need(
            name.isEmpty || manifest.stage(name) != nil,
            "picture.preview_graph: there is no stage of '\(name)'")
        for stage in manifest.stages {
            let shows = stage.results.values.contains("preview")
            let isNamed = stage.graph == name
            try need(
                !shows || isNamed, "picture.preview_graph: '\(stage.graph)' gives the preview")
            try need(
                !isNamed || shows || stage.results.values.contains("image"),
                "picture.preview_graph: '\(name)' gives no picture")
            try need(
                !isNamed || stage.sources.allSatisfy { $0.kind == "latent" },
                "picture.preview_graph: '\(name)' takes more than a latent")
        }
    }
}
