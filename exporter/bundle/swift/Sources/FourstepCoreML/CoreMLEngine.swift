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
        let caches = try cache ?? FileManager.default.url(
            for: .cachesDirectory, in: .userDomainMask, appropriateFor: nil, create: true)
        self.cache = caches.appendingPathComponent("fourstep", isDirectory: true)
    }

    public func opens(_ backend: String) -> Bool {
        backend == "coreml"
    }

    public func open(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> any Graph {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = units
        let place = try compiled(entry, graph)
        return CoreMLGraph(try MLModel(contentsOf: place, configuration: configuration), graph)
    }

    /// The graph compiled for this device, once for as long as its files have these digests.
    private func compiled(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> URL {
        let digest = graph.files.map { $0.sha256.prefix(16) }.joined(separator: "-")
        let folder = cache.appendingPathComponent(graph.name, isDirectory: true)
        let place = folder.appendingPathComponent("\(digest).mlmodelc", isDirectory: true)
        let files = FileManager.default
        if files.fileExists(atPath: place.path) {
            return place
        }
        let made = try MLModel.compileModel(at: entry)
        try? files.removeItem(at: folder)  // of an earlier package
        try files.createDirectory(at: folder, withIntermediateDirectories: true)
        try files.moveItem(at: made, to: place)
        return place
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
