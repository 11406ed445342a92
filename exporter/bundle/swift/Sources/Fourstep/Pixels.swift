/// Numbers between pictures of whole levels and tensors (1, 3, height, width), in float.
struct Pixels: Sendable {
    private let scale: Float
    private let offset: Float
    private let levels: Int
    private let fromScale: Float
    private let fromOffset: Float

    init(_ node: Node?) throws {
        func number(_ key: String, _ absent: Double) throws -> Float {
            Float(try node?.find(key)?.number() ?? absent)
        }
        scale = try number("to_levels_scale", 0.5)
        offset = try number("to_levels_offset", 0.5)
        fromScale = try number("from_levels_scale", 2)
        fromOffset = try number("from_levels_offset", -1)
        levels = try node?.find("levels")?.whole(1...255) ?? 255
        _ = try node?.find("rounding")?.oneOf("half to even")
    }

    /// Values (1, 3, height, width) as levels, a half to the even neighbour.
    func toLevels(_ image: Tensor, _ what: String) throws -> Levels {
        guard image.isFinite else { throw FourstepError.package("\(what) \(notFinite)") }
        let (heightPx, widthPx) = (image.shape[2], image.shape[3])
        let count = heightPx * widthPx
        let values = image.floats
        var rgb = [UInt8](repeating: 0, count: 3 * count)
        for i in 0..<count {
            for k in 0..<3 {
                let scaled = values[k * count + i] * scale
                let unit = min(max(scaled + offset, 0), 1)
                rgb[3 * i + k] = UInt8((unit * Float(levels)).rounded(.toNearestOrEven))
            }
        }
        return Levels(checkedWidthPx: widthPx, heightPx: heightPx, rgb: rgb)
    }

    /// Levels as values (1, 3, height, width).
    func values(of picture: Levels) -> Tensor {
        let count = picture.heightPx * picture.widthPx
        var values = [Float](repeating: 0, count: 3 * count)
        for i in 0..<count {
            for k in 0..<3 {
                let unit = Float(picture.rgb[3 * i + k]) / Float(levels)
                let scaled = fromScale * unit
                values[k * count + i] = scaled + fromOffset
            }
        }
        return Tensor(values, [1, 3, picture.heightPx, picture.widthPx])
    }

    /// A small picture of a latent: colours = latent @ factors + bias, in double.
    ///
    /// - Parameter map: (channels + 1, 3): factors, then the bias.
    func preview(of latent: Tensor, _ map: [[Double]]) throws -> Levels {
        guard latent.isFinite else {
            throw FourstepError.package("the latent of a preview \(notFinite)")
        }
        let channels = latent.shape[1]
        let count = latent.shape[2] * latent.shape[3]
        let values = latent.floats
        var rgb = [UInt8](repeating: 0, count: 3 * count)
        for i in 0..<count {
            for k in 0..<3 {
                var colour = map[channels][k]
                for c in 0..<channels {
                    colour += Double(values[c * count + i]) * map[c][k]
                }
                let unit = min(max(colour * Double(scale) + Double(offset), 0), 1)
                rgb[3 * i + k] = UInt8((unit * Double(levels)).rounded(.toNearestOrEven))
            }
        }
        return Levels(checkedWidthPx: latent.shape[3], heightPx: latent.shape[2], rgb: rgb)
    }
}
