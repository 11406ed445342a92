import Foundation

/// Draws with a package, one drawing at a time. It knows no graph by its name; which one runs when, on
/// what, is said by the manifest's stages.
public actor Player {
    public nonisolated let manifest: Manifest
    let tokenizers: [String: Tokenizer]
    private let source: Package
    private let engine: any Engine
    private let keepsOpen: Bool
    private var opened: [String: any Graph] = [:]

    typealias Ports = [String: Tensor]

    /// Told of each event, where the drawing runs.
    public typealias Listener = @Sendable (Event) -> Void

    init(
        _ source: Package, _ engine: any Engine, _ tokenizers: [String: Tokenizer], keepsOpen: Bool
    ) {
        manifest = source.manifest
        self.source = source
        self.engine = engine
        self.tokenizers = tokenizers
        self.keepsOpen = keepsOpen
    }

    /// The events of a drawing, as they happen.
    ///
    /// Whoever iterates may be on the main actor: drawing is not. When the iteration ends early, or its
    /// task is cancelled, the drawing ends before the next graph is run.
    ///
    /// - Parameter previews: whether each step has its preview.
    public nonisolated func events(
        _ requests: [Request], previews: Bool = true
    ) -> AsyncThrowingStream<Event, any Error> {
        AsyncThrowingStream { continuation in
            let task = Task.detached(priority: .userInitiated) {
                do {
                    try await self.draw(requests, previews: previews) { event in
                        _ = continuation.yield(event)
                    }
                    continuation.finish()
                } catch {
                    continuation.finish(throwing: error)
                }
            }
            continuation.onTermination = { _ in task.cancel() }
        }
    }

    /// A picture of one prompt, without events between.
    public func picture(_ request: Request) throws -> Levels {
        let drawing = Drawing(manifest: manifest, previews: false) { _ in }
        defer { releaseUnlessKept() }
        let pictures = try drawing.draw([request], on: self)
        return pictures[0]
    }

    /// Draw pictures; every graph is opened once for all of them.
    ///
    /// Throws `FourstepError.request` for what cannot be drawn, before anything is;
    /// `FourstepError.package` for a damaged package or a graph that gives no numbers;
    /// `CancellationError` when the task is cancelled.
    public func draw(_ requests: [Request], previews: Bool = true, _ listener: @escaping Listener)
        throws
    {
        let drawing = Drawing(manifest: manifest, previews: previews, listener)
        defer { releaseUnlessKept() }
        _ = try drawing.draw(requests, on: self)
    }

    /// Let go of graphs that stayed open.
    public func close() {
        opened.removeAll()
    }

    private func releaseUnlessKept() {
        if !keepsOpen {
            opened.removeAll()
        }
    }

    /// A graph is not needed for now: unless graphs stay open, it is let go of.
    func release(_ name: String) {
        if !keepsOpen {
            opened[name] = nil
        }
    }

    /// Run a graph, or a part of one, which stays open until it is released.
    ///
    /// - Parameter end: what the call is for, in an error.
    func run(_ name: String, _ inputs: Ports, _ end: String) throws -> Ports {
        try Task.checkCancellation()
        let graph: any Graph
        if let open = opened[name] {
            graph = open
        } else {
            graph = try source.open(name, engine)
            opened[name] = graph
        }
        let outputs: Ports
        do {
            outputs = try graph.run(inputs)
        } catch {
            throw FourstepError.package(
                "\(name), \(end): cannot be run: \(error.localizedDescription)")
        }
        for port in manifest.graphs[name]?.outputs ?? [] {
            let what = "\(name), \(end): its output '\(port.name)'"
            guard let value = outputs[port.name], port.takes(isInt: value.isInt, value.shape) else {
                throw FourstepError.package(
                    "\(what) has not the shape that the manifest says; build the package again")
            }
            guard value.isFinite else { throw FourstepError.package("\(what) \(notFinite)") }
        }
        return outputs
    }
}
