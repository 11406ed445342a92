import Foundation

/// What computes: it opens graphs. One type an engine; the core has none built in.
public protocol Engine: Sendable {
    /// Whether it opens graphs of a manifest's `backend`, such as `coreml`.
    func opens(_ backend: String) -> Bool

    /// Open a graph, or a part of one; whatever is thrown is said with the file's name.
    ///
    /// - Parameters:
    ///   - entry: its file or folder.
    ///   - graph: its ports, and what it wants to be told (`session`).
    func open(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> any Graph
}

/// A graph that an engine has opened. Whoever lets go of it frees its memory.
public protocol Graph: AnyObject {
    /// The outputs for these inputs, each by the name of its port.
    func run(_ inputs: [String: Tensor]) throws -> [String: Tensor]
}

/// One picture to draw.
public struct Request: Sendable {
    public var prompt: String
    /// Of the noise; its low 32 bits count, as with torch's CPU generator. A negative seed stands for
    /// the number with the same 64 bits: `UInt64(bitPattern: -1)`.
    public var seed: UInt64
    /// The picture to start from, of the package's size, or nil.
    public var image: Levels?
    /// How much of the schedule an image goes through, in (0, 1].
    public var strength: Double
    /// What not to draw, or nil: the package's own.
    public var negative: String?

    public init(
        _ prompt: String, seed: UInt64 = 0, image: Levels? = nil, strength: Double = 1,
        negative: String? = nil
    ) {
        self.prompt = prompt
        self.seed = seed
        self.image = image
        self.strength = strength
        self.negative = negative
    }
}

/// What happens while pictures are drawn.
public enum Event: Sendable {
    /// Something to know of a request, as that the end of a prompt is not read.
    case remark(String)
    /// All prompts, negative ones among them, are encoded.
    case conditioned(prompts: Int)
    /// A step of a request is done.
    case step(Step)
    /// A picture is done.
    case picture(Picture)

    public struct Step: Sendable {
        /// Of the request, counted from 0.
        public let index: Int
        /// Counted from 1.
        public let step: Int
        public let steps: Int
        public let sigma: Double
        /// (1, channels, h, w).
        public let latent: Tensor
        /// What the latent would be as a picture: small, or of full size where the package has a graph
        /// for it; nil where it has neither, or previews were not asked for.
        public let preview: Levels?
    }

    public struct Picture: Sendable {
        /// Of its request, counted from 0.
        public let index: Int
        public let request: Request
        public let pixels: Levels
        /// That it was decoded from, (1, channels, h, w).
        public let latent: Tensor
    }
}
