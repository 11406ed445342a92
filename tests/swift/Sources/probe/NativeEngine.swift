import CFourstep
import Foundation
import Fourstep

/// What the library said of a call that failed.
struct NativeError: LocalizedError {
    let errorDescription: String?
}

/// How many graphs are open, and how many were opened.
final class Counts: @unchecked Sendable {
    private let lock = NSLock()
    private var counts = (open: 0, opened: 0)

    var both: (open: Int, opened: Int) {
        lock.withLock { counts }
    }

    func add(_ change: Int) {
        lock.withLock {
            counts.open += change
            counts.opened += max(change, 0)
        }
    }
}

/// An engine of the loop in C++, graph by graph over its C interface.
struct NativeEngine: Engine {
    let backend: String
    let counts = Counts()

    func opens(_ backend: String) -> Bool {
        backend == self.backend
    }

    func open(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> any Graph {
        var error = [CChar](repeating: 0, count: NativeGraph.errorBytes)
        let names = texts(Array(graph.session.keys))
        let values = texts(Array(graph.session.values))
        defer {
            for text in names + values {
                free(UnsafeMutablePointer(mutating: text))
            }
        }
        guard
            let handle = fourstep_graph_open(
                backend, entry.path, names, values, names.count, &error, error.count)
        else { throw NativeError(errorDescription: said(error)) }
        return NativeGraph(handle, counts)
    }
}

private func said(_ error: [CChar]) -> String {
    String(decoding: error.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
}

/// Copies for C, to be freed.
private func texts(_ strings: [String]) -> [UnsafePointer<CChar>?] {
    strings.map { UnsafePointer(strdup($0)) }
}

private final class NativeGraph: Graph {
    static let errorBytes = 1024

    private let handle: OpaquePointer
    private let counts: Counts

    init(_ handle: OpaquePointer, _ counts: Counts) {
        self.handle = handle
        self.counts = counts
        counts.add(1)
    }

    deinit {
        fourstep_graph_close(handle)
        counts.add(-1)
    }

    func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        var error = [CChar](repeating: 0, count: Self.errorBytes)
        let given = inputs.map { Given($0.key, $0.value) }
        defer {
            for tensor in given {
                tensor.free()
            }
        }
        var found: UnsafePointer<fourstep_tensor>?
        var count = 0
        let status = fourstep_graph_run(
            handle, given.map(\.tensor), given.count, &found, &count, &error, error.count)
        guard status == FOURSTEP_OK else {
            throw NativeError(errorDescription: said(error))
        }
        var outputs: [String: Tensor] = [:]
        for output in UnsafeBufferPointer(start: found, count: count) {
            outputs[String(cString: output.name)] = taken(output)
        }
        return outputs
    }
}

/// A tensor as the library takes it, in memory of its own.
private struct Given {
    let tensor: fourstep_tensor

    init(_ name: String, _ value: Tensor) {
        let shape = UnsafeMutablePointer<Int64>.allocate(capacity: max(value.shape.count, 1))
        for (axis, size) in value.shape.enumerated() {
            shape[axis] = Int64(size)
        }
        let count = value.shape.reduce(1, *)
        let words = UnsafeMutablePointer<UInt32>.allocate(capacity: max(count, 1))
        let bits: [UInt32] =
            switch value.values {
            case .floats(let floats): floats.map(\.bitPattern)
            case .ints(let ints): ints.map { UInt32(bitPattern: $0) }
            }
        words.initialize(from: bits, count: count)
        let dtype = value.isInt ? FOURSTEP_INT32 : FOURSTEP_FLOAT32
        tensor = fourstep_tensor(
            name: strdup(name), dtype: Int32(dtype), axes: value.shape.count, shape: shape, data: words)
    }

    func free() {
        Foundation.free(UnsafeMutablePointer(mutating: tensor.name))
        tensor.shape.deallocate()
        tensor.data.deallocate()
    }
}

private func taken(_ output: fourstep_tensor) -> Tensor {
    let shape = (0..<output.axes).map { Int(output.shape[$0]) }
    let count = shape.reduce(1, *)
    if output.dtype == FOURSTEP_INT32 {
        let start = output.data.assumingMemoryBound(to: Int32.self)
        return Tensor(Array(UnsafeBufferPointer(start: start, count: count)), shape)
    }
    let start = output.data.assumingMemoryBound(to: Float.self)
    return Tensor(Array(UnsafeBufferPointer(start: start, count: count)), shape)
}
