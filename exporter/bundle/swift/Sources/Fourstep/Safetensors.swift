import Foundation

/// Reads a safetensors file: float32, int32 and uint8, checked before memory is taken.
struct Safetensors {
    private let data: [UInt8]
    private let start: Int
    private var header: Node
    /// Another file, which has the tensors that are not here; or none.
    private var others: [Safetensors] = []

    /// Throws `Malformed` for bytes that are no such file.
    init(_ content: Data) throws {
        data = [UInt8](content)
        guard data.count >= 8 else { throw Malformed(what: "not safetensors: its header is cut off") }
        let size = data[0..<8].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        guard size <= UInt64(data.count - 8) else {
            throw Malformed(what: "not safetensors: its header is cut off")
        }
        start = 8 + Int(size)
        header = Node(value: try Json.parse(Data(data[8..<start])), place: "")
    }

    /// The same with tensors that are not here: as another one of this file, else as in another file.
    func with(_ same: [String: String], _ like: Safetensors) throws -> Safetensors {
        var found = self
        for (name, other) in same {
            found.header = try found.header.with(name, header.get(other).value)
        }
        found.others = [like]
        return found
    }

    func names() throws -> [String] {
        try header.entries().map { string($0.key) }.filter { $0 != "__metadata__" }
    }

    func has(_ name: String) throws -> Bool {
        if try header.find(name) != nil {
            return true
        }
        return try others.first?.has(name) ?? false
    }

    func floats(_ name: String) throws -> [Float] {
        try words(name, "F32").map { Float(bitPattern: $0) }
    }

    func ints(_ name: String) throws -> [Int32] {
        try words(name, "I32").map { Int32(bitPattern: $0) }
    }

    func bytes(_ name: String) throws -> [UInt8] {
        Array(try part(name, "U8", width: 1))
    }

    func tensor(_ name: String) throws -> Tensor {
        if try header.find(name) == nil, let other = others.first {
            return try other.tensor(name)
        }
        let isInt = try header.get(name).get("dtype").name() == "I32"
        return try isInt
            ? Tensor(ints(name), shape(name)) : Tensor(floats(name), shape(name))
    }

    private func shape(_ name: String) throws -> [Int] {
        try header.get(name).get("shape").items().map { try $0.whole(0...Int(Int32.max)) }
    }

    private func words(_ name: String, _ dtype: String) throws -> [UInt32] {
        try part(name, dtype, width: 4).withUnsafeBytes { raw in
            stride(from: 0, to: raw.count, by: 4).map { at in
                UInt32(littleEndian: raw.loadUnaligned(fromByteOffset: at, as: UInt32.self))
            }
        }
    }

    private func part(_ name: String, _ dtype: String, width: Int) throws -> ArraySlice<UInt8> {
        guard let entry = try header.find(name) else {
            if let other = others.first {
                return try other.part(name, dtype, width: width)
            }
            throw Malformed(what: "tensor '\(name)' is missing")
        }
        _ = try entry.get("dtype").oneOf(dtype)
        let room = 0...(data.count - start)
        let offsets = try entry.get("data_offsets").items().map { try $0.whole(room) }
        guard offsets.count == 2, offsets[0] <= offsets[1] else {
            throw entry.wrong("data_offsets: two numbers are expected")
        }
        var bytes = width
        for size in try shape(name) {
            let (product, isTooLarge) = bytes.multipliedReportingOverflow(by: size)
            bytes = isTooLarge ? Int.max : product
        }
        guard bytes == offsets[1] - offsets[0] else {
            throw entry.wrong(
                "its shape needs \(bytes) bytes, and there are \(offsets[1] - offsets[0])")
        }
        return data[(start + offsets[0])..<(start + offsets[1])]
    }
}
