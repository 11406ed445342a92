// Signatures of what the engine uses of Core ML, so that its types can be checked where there is none.
// Nothing here does anything.

@_exported import Foundation

public enum MLComputeUnits: Int, Sendable {
    case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine
}

open class MLModelConfiguration: NSObject {
    open var computeUnits = MLComputeUnits.all
    open var functionName: String?
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

open class MLModel: NSObject {
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {}

    open class func compileModel(at modelURL: URL) throws -> URL { modelURL }

    open func prediction(from input: any MLFeatureProvider) throws -> any MLFeatureProvider { input }
}

open class MLMultiArray: NSObject {}

open class MLFeatureValue: NSObject {
    public init<Scalar: MLShapedArrayScalar>(shapedArray: MLShapedArray<Scalar>) {}

    open var multiArrayValue: MLMultiArray? { nil }
}

open class MLDictionaryFeatureProvider: NSObject, MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}

    public func featureValue(for featureName: String) -> MLFeatureValue? { nil }
}

public protocol MLShapedArrayScalar {}
extension Float: MLShapedArrayScalar {}
extension Int32: MLShapedArrayScalar {}

public struct MLShapedArray<Scalar: MLShapedArrayScalar> {
    public let scalars: [Scalar]
    public let shape: [Int]

    public init<S: Sequence>(scalars: S, shape: [Int]) where S.Element == Scalar {
        self.scalars = Array(scalars)
        self.shape = shape
    }

    public init(converting array: MLMultiArray) {
        (scalars, shape) = ([], [])
    }
}

/// Of Objective-C's module.
public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result {
    try body()
}
