/// The loop: prompts to pictures in a fixed number of steps.
struct Drawing {
    private typealias Ports = [String: Tensor]
    private typealias Stage = Manifest.Stage

    private let manifest: Manifest
    private let schedule: Manifest.Schedule
    private let picture: Manifest.PictureEntry
    private let previews: Bool
    private let listener: Player.Listener

    /// Where the inputs of a call are taken from.
    private struct Feed {
        var prompt = ""
        var values: [String: Tensor] = [:]  // what graphs gave for the prompt, by "graph/port"
        var negative: [String: Tensor] = [:]  // and for the negative prompt
        var latent: Tensor?
        var image: Tensor?
        var step = 0
    }

    init(manifest: Manifest, previews: Bool, _ listener: @escaping Player.Listener) {
        self.manifest = manifest
        schedule = manifest.schedule
        picture = manifest.picture
        self.previews = previews
        self.listener = listener
    }

    /// Draw pictures with the graphs of a player; they are returned in the order of their requests.
    func draw(_ requests: [Request], on player: isolated Player) throws -> [Levels] {
        let starts = try requests.map(check)
        let texts = textsToEncode(requests)
        let values = try condition(texts, player)
        listener(.conditioned(prompts: texts.count))
        let encoded = try encode(requests, player)
        let latents = try walk(requests, starts, values, encoded, player)
        return try decode(requests, values, latents, player)
    }

    /// The step at which a request enters the schedule; throws for what is no request.
    private func check(_ request: Request) throws -> Int {
        try Tokenizer.check(request.prompt, field: "prompt")
        try checkNegative(request.negative)
        let first = try Steps.first(schedule, request.strength)
        guard let image = request.image else {
            guard request.strength == 1 else {
                throw FourstepError.request(
                    field: "strength", "applies only with a picture to start from (image)")
            }
            return 0
        }
        guard manifest.giving("start") != nil else {
            throw FourstepError.request(
                field: "image",
                """
                this package has no graph to start from a picture with; build with image_to_image = \
                true in [image]
                """)
        }
        guard image.widthPx == picture.widthPx, image.heightPx == picture.heightPx else {
            throw FourstepError.request(
                field: "image",
                """
                is \(image.widthPx) x \(image.heightPx) px; scale or cut it to \(picture.widthPx) x \
                \(picture.heightPx)
                """)
        }
        return first
    }

    private func checkNegative(_ negative: String?) throws {
        guard let negative else { return }
        guard schedule.guidanceScale != nil else {
            throw FourstepError.request(
                field: "negative",
                """
                this package draws without guidance, and nothing else uses a negative prompt; build \
                with guidance above 1 in [schedule] of a recipe
                """)
        }
        if let fixed = schedule.negativePrompt {
            throw FourstepError.request(
                field: "negative",
                """
                the negative prompt of this package is fixed: \(quoted(fixed)); build without \
                negative_prompt in [schedule] of a recipe to give others
                """)
        }
        try Tokenizer.check(negative, field: "negative")
    }

    /// What has to be encoded, each once: all prompts, then all negative prompts.
    ///
    /// By code points: Swift's own strings take canonically equal ones for the same.
    private func textsToEncode(_ requests: [Request]) -> [String] {
        var seen: Set<Points> = []
        var all = requests.map(\.prompt)
        if schedule.takesNegative {
            all += requests.map { $0.negative ?? "" }
        }
        return all.filter { seen.insert(points($0)).inserted }
    }

    /// What the stages of once per prompt give for each text, as far as it is used later.
    private func condition(
        _ texts: [String], _ player: isolated Player
    ) throws -> [Points: Ports] {
        var found = texts.map { Feed(prompt: $0) }
        for (index, stage) in manifest.stages.enumerated() where stage.runs == Stage.perPrompt {
            var calls: [Ports] = []
            for feed in found {
                calls.append(try inputs(stage.inputs, feed, player))
            }
            let ends = texts.map { "prompt \(quoted($0))" }
            let outputs = try run(stage.parts, calls, ends, player)
            let later = manifest.stages[(index + 1)...].flatMap(\.sources).filter(\.isOutput)
            let used = Set(later.map { "\($0.name)/\($0.port)" })
            for i in found.indices {
                for (port, value) in outputs[i] {
                    found[i].values["\(stage.graph)/\(port)"] = value
                }
                found[i].values = found[i].values.filter { used.contains($0.key) }
            }
        }
        return Dictionary(uniqueKeysWithValues: found.map { (points($0.prompt), $0.values) })
    }

    private func inputs(
        _ sources: [String: Manifest.Source], _ feed: Feed, _ player: isolated Player
    ) throws -> Ports {
        var found: Ports = [:]
        for (port, source) in sources {
            found[port] = try value(source, feed, player)
        }
        return found
    }

    private func value(
        _ source: Manifest.Source, _ feed: Feed, _ player: isolated Player
    ) throws -> Tensor? {
        switch source.kind {
        case "tokens":
            return try tokens(source.name, feed.prompt, player)
        case "latent":
            return feed.latent
        case "image":
            return feed.image
        default:
            let values = source.kind == "output" ? feed.values : feed.negative
            let value = values["\(source.name)/\(source.port)"]
            return source.rowOfStep ? value?.row(feed.step) : value
        }
    }

    private func tokens(
        _ name: String, _ prompt: String, _ player: isolated Player
    ) throws -> Tensor? {
        guard let tokenizer = player.tokenizers[name],
            let most = manifest.tokenizers[name]?.tokens
        else { return nil }
        let ids = try tokenizer.ids(prompt)
        if ids.count > most {
            listener(
                .remark(
                    """
                    \(name) reads \(most) tokens; the prompt \(quoted(prompt)) has \(ids.count), and \
                    its end is not read
                    """))
        }
        return Tensor(tokenizer.row(of: ids), [1, most])
    }

    /// A graph's outputs for several inputs; each of its parts is opened once, in turn.
    private func run(
        _ parts: [String], _ calls: [Ports], _ ends: [String], _ player: isolated Player
    ) throws -> [Ports] {
        var found = calls
        for part in parts {
            for i in found.indices {
                found[i] = try player.run(part, found[i], ends[i])
            }
            player.release(part)
        }
        return found
    }

    /// The latents that requests start from, by their index; each picture is encoded once.
    private func encode(
        _ requests: [Request], _ player: isolated Player
    ) throws -> [Int: [Float]] {
        guard let stage = manifest.giving("start") else { return [:] }
        var images: [Levels] = []
        var places: [Int: Int] = [:]
        for (index, request) in requests.enumerated() {
            guard let image = request.image else { continue }
            if let place = images.firstIndex(of: image) {
                places[index] = place
            } else {
                places[index] = images.count
                images.append(image)
            }
        }
        if images.isEmpty {
            return [:]
        }
        var calls: [Ports] = []
        for image in images {
            let feed = Feed(image: picture.pixels.values(of: image))
            calls.append(try inputs(stage.inputs, feed, player))
        }
        let ends = images.indices.map { "picture \($0 + 1)" }
        let outputs = try run(stage.parts, calls, ends, player)
        return places.mapValues { outputs[$0][stage.port("start")]?.floats ?? [] }
    }

    /// All steps of all pictures; their final latents.
    private func walk(
        _ requests: [Request], _ starts: [Int], _ values: [Points: Ports],
        _ encoded: [Int: [Float]], _ player: isolated Player
    ) throws -> [Tensor] {
        guard let stage = manifest.giving("velocity") else { return [] }
        var latents: [Tensor] = []
        for (index, request) in requests.enumerated() {
            var noise = Noise(seed: request.seed)
            var latent = noise.draw(picture.latentCount)
            if let image = encoded[index] {
                latent = Steps.begin(schedule, starts[index], image, latent)
            }
            var feed = Feed(prompt: request.prompt, values: values[points(request.prompt)] ?? [:])
            if schedule.takesNegative {
                feed.negative = values[points(request.negative ?? "")] ?? [:]
            }
            for step in starts[index]..<schedule.steps {
                feed.step = step
                feed.latent = Tensor(latent, picture.latent)
                let velocity = try stepVelocity(stage, feed, player)
                let fresh = schedule.takesNoise ? noise.draw(picture.latentCount) : []
                latent = Steps.advance(schedule, step, latent, velocity, fresh)
                let done = Tensor(latent, picture.latent)
                guard done.isFinite else {
                    throw FourstepError.package(
                        "\(stage.graph), \(at(step)): the latent after it \(notFinite)")
                }
                listener(.step(try event(index, step, done, player)))
            }
            latents.append(Tensor(latent, picture.latent))
        }
        for part in (manifest.stage(picture.previewGraph)?.parts ?? []) + stage.parts {
            player.release(part)
        }
        return latents
    }

    private func at(_ step: Int) -> String {
        "step \(step + 1) of \(schedule.steps)"
    }

    /// What the stage of each step gives for one step: with guidance, of both its calls.
    private func stepVelocity(
        _ stage: Manifest.Stage, _ feed: Feed, _ player: isolated Player
    ) throws -> [Float] {
        var calls = [try inputs(stage.inputs, feed, player)]
        var ends = [at(feed.step)]
        if schedule.guidanceScale != nil {
            calls.append(try inputs(stage.negativeInputs, feed, player))
            ends.append("\(at(feed.step)), negative prompt")
        }
        if stage.parts.count == 1 {
            for i in calls.indices {
                calls[i] = try player.run(stage.parts[0], calls[i], ends[i])
            }
        } else {
            calls = try run(stage.parts, calls, ends, player)  // memory holds one part at a time
        }
        let found = calls.map { $0[stage.port("velocity")]?.floats ?? [] }
        guard let scale = schedule.guidanceScale else { return found[0] }
        return Steps.guided(scale, found[0], found[1])
    }

    private func event(
        _ index: Int, _ step: Int, _ latent: Tensor, _ player: isolated Player
    ) throws -> Event.Step {
        let shown = try previews ? preview(step, latent, player) : nil
        return Event.Step(
            index: index, step: step + 1, steps: schedule.steps, sigma: schedule.sigmas[step + 1],
            latent: latent, preview: shown)
    }

    /// By a graph of the package, which stays open until the steps are over; or by its map.
    private func preview(
        _ step: Int, _ latent: Tensor, _ player: isolated Player
    ) throws -> Levels? {
        guard let stage = manifest.stage(picture.previewGraph) else {
            return try picture.preview.map { try picture.pixels.preview(of: latent, $0) }
        }
        var values = stage.inputs.mapValues { _ in latent }
        for part in stage.parts {
            values = try player.run(part, values, "preview of \(at(step))")
        }
        let image = stage.results.keys.first.flatMap { values[$0] }
        return try image.map { try picture.pixels.toLevels($0, stage.graph) }
    }

    private func decode(
        _ requests: [Request], _ values: [Points: Ports], _ latents: [Tensor],
        _ player: isolated Player
    ) throws -> [Levels] {
        guard let stage = manifest.giving("image"), let last = stage.parts.last else { return [] }
        var calls: [Ports] = []
        for (request, latent) in zip(requests, latents) {
            let own = values[points(request.prompt)] ?? [:]
            let feed = Feed(prompt: request.prompt, values: own, latent: latent)
            calls.append(try inputs(stage.inputs, feed, player))
        }
        let ends = calls.indices.map { "picture \($0 + 1)" }
        calls = try run(Array(stage.parts.dropLast()), calls, ends, player)
        var pictures: [Levels] = []
        for (index, call) in calls.enumerated() {  // each is told as soon as it is done
            let outputs = try player.run(last, call, ends[index])
            guard let image = outputs[stage.port("image")] else { continue }
            let pixels = try picture.pixels.toLevels(image, stage.graph)
            let done = Event.Picture(
                index: index, request: requests[index], pixels: pixels, latent: latents[index])
            listener(.picture(done))
            pictures.append(pixels)
        }
        player.release(last)
        return pictures
    }
}
