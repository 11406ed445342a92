/// Values of a graph's port: floats or ints, last axis fastest.
public struct Tensor: Sendable {
    public enum Values: Sendable {
        case floats([Float])
        case ints([Int32])
    }

    /// Sizes of the axes.
    public let shape: [Int]
    public let values: Values

    public init(_ floats: [Float], _ shape: [Int]) {
        precondition(floats.count == shape.reduce(1, *), "as many values as the shape has")
        self.shape = shape
        values = .floats(floats)
    }

    public init(_ ints: [Int32], _ shape: [Int]) {
        precondition(ints.count == shape.reduce(1, *), "as many values as the shape has")
        self.shape = shape
        values = .ints(ints)
    }

    /// The values, or none where they are ints.
    public var floats: [Float] {
        if case .floats(let floats) = values { floats } else { [] }
    }

    public var isInt: Bool {
        if case .ints = values { true } else { false }
    }

    /// Whether all values are numbers.
    var isFinite: Bool { floats.allSatisfy(\.isFinite) }

    /// Row `index` of the first axis, which stays with size 1.
    func row(_ index: Int) -> Tensor {
        let rowShape = [1] + shape.dropFirst()
        let count = rowShape.reduce(1, *)
        let range = (index * count)..<((index + 1) * count)
        switch values {
        case .floats(let floats): return Tensor(Array(floats[range]), rowShape)
        case .ints(let ints): return Tensor(Array(ints[range]), rowShape)
        }
    }
}

/// A picture of whole levels: rows of red, green and blue, a byte each.
public struct Levels: Sendable, Equatable {
    public let widthPx: Int
    public let heightPx: Int
    /// (height, width, 3).
    public let rgb: [UInt8]

    /// Throws where there are not three bytes for each pixel.
    public init(widthPx: Int, heightPx: Int, rgb: [UInt8]) throws {
        guard widthPx > 0, heightPx > 0, rgb.count == 3 * widthPx * heightPx else {
            throw FourstepError.request(
                field: "image",
                "\(widthPx) x \(heightPx) px need three bytes each, and there are \(rgb.count)")
        }
        self.init(checkedWidthPx: widthPx, heightPx: heightPx, rgb: rgb)
    }

    init(checkedWidthPx: Int, heightPx: Int, rgb: [UInt8]) {
        widthPx = checkedWidthPx
        self.heightPx = heightPx
        self.rgb = rgb
    }
}
