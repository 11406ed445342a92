#if canImport(CoreML)
import CoreML
import Foundation
import Fourstep

/// Opens graphs with Core ML. It sends nothing anywhere.
///
/// A prediction cannot be ended early: a drawing that is cancelled ends when the graph that runs has
/// ended.
public struct CoreMLEngine: Engine {
    private let units: MLComputeUnits
    private let cache: URL

    /// - Parameters:
    ///   - units: where to compute; on iPhones `.cpuAndNeuralEngine` holds least memory.
    ///   - cache: where compiled graphs are kept; nil: in the app's caches.
    public init(units: MLComputeUnits = .cpuAndNeuralEngine, cache: URL? = nil) throws {
        self.units = units
        let files = FileManager.default
        let place =
            try cache
            ?? files.url(
                for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        self.cache = place.appendingPathComponent("fourstep", isDirectory: true)
    }

    public func opens(_ backend: String) -> Bool {
        backend == "coreml"
    }

    public func open(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> any Graph {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        if let function = graph.session["function"] {  // of a package that draws several sizes
            guard #available(iOS 18, macOS 15, visionOS 2, *) else {
                throw FourstepError.package(
                    "this graph is a function, which needs iOS 18 or macOS 15; draw the first size")
            }
            configuration.functionName = function
        }
        let place = try compiled(entry, graph)
        return CoreMLGraph(try MLModel(contentsOf: place, configuration: configuration), graph)
    }

    /// The graph compiled for this device, once for as long as its files have these digests.
    private func compiled(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> URL {
        let digest = graph.files.map { $0.sha256.prefix(16) }.joined(separator: "-")
        let name = entry.deletingPathExtension().lastPathComponent
        let folder = cache.appendingPathComponent(name, isDirectory: true)
        let place = folder.appendingPathComponent("\(digest).mlmodelc", isDirectory: true)
        let files = FileManager.default
        if files.fileExists(atPath: place.path) {
            return place
        }
        let work = files.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? files.removeItem(at: work) }
        let made = try MLModel.compileModel(at: assembled(entry, graph, in: work))
        try? files.removeItem(at: folder)  // of an earlier package
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        try files.moveItem(at: made, to: place)
        return place
    }

    /// A package that can be compiled: of another size, one like the first's with the model that the
    /// entry makes of that one's. A file system that clones copies weights in no room.
    private func assembled(_ entry: URL, _ graph: Manifest.GraphEntry, in work: URL) throws -> URL {
        guard let base = graph.session["base"], let weights = graph.session["weights"] else {
            return entry
        }
        let files = FileManager.default
        let home = entry.deletingLastPathComponent()
        for path in ["Manifest.json", "Data/com.apple.CoreML/weights/weight.bin"] {
            let to = work.appendingPathComponent(weights).appendingPathComponent(path)
            try files.createDirectory(
                at: to.deletingLastPathComponent(), withIntermediateDirectories: true)
            let from = home.appendingPathComponent(weights).appendingPathComponent(path)
            try files.copyItem(at: from.resolvingSymlinksInPath(), to: to)
        }
        let model = try Differences.applied(
            Data(contentsOf: entry), to: Data(contentsOf: home.appendingPathComponent(base)))
        try model.write(to: work.appendingPathComponent(base))
        return work.appendingPathComponent(weights)
    }
}

private final class CoreMLGraph: Graph {
    private let model: MLModel
    private let graph: Manifest.GraphEntry

    init(_ model: MLModel, _ graph: Manifest.GraphEntry) {
        self.model = model
        self.graph = graph
    }

    func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        try autoreleasepool { () -> [String: Tensor] in
            let features = try MLDictionaryFeatureProvider(
                dictionary: inputs.mapValues { tensor in
                    switch tensor.values {
                    case .floats(let floats):
                        MLFeatureValue(
                            shapedArray: MLShapedArray<Float>(
                                scalars: floats, shape: tensor.shape))
                    case .ints(let ints):
                        MLFeatureValue(
                            shapedArray: MLShapedArray<Int32>(scalars: ints, shape: tensor.shape))
                    }
                })
            let found = try model.prediction(from: features)
            var outputs: [String: Tensor] = [:]
            for port in graph.outputs {
                if let array = found.featureValue(for: port.name)?.multiArrayValue {
                    let shaped = MLShapedArray<Float>(converting: array)
                    outputs[port.name] = Tensor(shaped.scalars, shaped.shape)
                }
            }
            return outputs
        }
    }
}
#endif
