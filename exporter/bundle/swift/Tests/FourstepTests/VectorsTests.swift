import Foundation
import Testing

@testable import Fourstep

/// The package of this bundle, or the one that `FOURSTEP_PACKAGE` names.
private let place: URL = {
    if let named = ProcessInfo.processInfo.environment["FOURSTEP_PACKAGE"] {
        return URL(fileURLWithPath: named)
    }
    let tests = URL(fileURLWithPath: #filePath).deletingLastPathComponent()
    return tests.deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("package")
}()

@Test func everyVectorIsReproduced() throws {
    let whole = try Package(place)
    #expect(try Vectors(whole).compared > 100)
    for size in whole.sizes {
        let vectors = try Vectors(whole.at(size))
        #expect(vectors.failures == [])
    }
    #expect(throws: FourstepError.self) { try whole.at("1x1") }
}

@Test func aFileIsWhatDiffersFromAnother() throws {
    let base = Data("abcdefgh".utf8)
    let edits = Data([2, 3, 1, 0x58, 3, 0, 2, 0x59, 0x5A])
    #expect(try Differences.applied(edits, to: base) == Data("abXfghYZ".utf8))
    for wrong in [Data([2, 3, 1]), Data([0xFF]), Data([9, 0, 0]), Data([2, 0, 0]), Data()] {
        #expect(throws: FourstepError.self) { try Differences.applied(wrong, to: base) }
    }
}

@Test func digestsAreThoseOfTheStandard() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for (text, expected) in [("", empty), ("abc", abc)] {
        var plain = PlainSha256()
        plain.update(Array(text.utf8))
        let digits = plain.finalize().map { String(format: "%02x", $0) }.joined()
        #expect(digits == expected)
        #expect(Sha256.hex(of: Data(text.utf8)) == expected)
    }
}

/// Gives halves of everything, so that the loop can be run without an engine.
private struct Halves: Engine {
    func opens(_ backend: String) -> Bool { true }

    func open(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> any Graph {
        Half(graph: graph)
    }
}

private final class Half: Graph {
    private let graph: Manifest.GraphEntry

    init(graph: Manifest.GraphEntry) {
        self.graph = graph
    }

    func run(_ inputs: [String: Tensor]) throws -> [String: Tensor] {
        var outputs: [String: Tensor] = [:]
        for port in graph.outputs {
            let count = port.shape.reduce(1, *)
            outputs[port.name] = Tensor([Float](repeating: 0.5, count: count), port.shape)
        }
        return outputs
    }
}

@Test func eventsComeInOrder() async throws {
    let player = try Package(place).player(Halves())
    var steps = 0
    var last: Levels?
    for try await event in player.events([Request("a red circle", seed: 7)]) {
        switch event {
        case .remark, .conditioned:
            #expect(steps == 0)
        case .step(let step):
            steps += 1
            #expect(step.step == steps && step.steps == player.manifest.schedule.steps)
        case .picture(let picture):
            #expect(steps == player.manifest.schedule.steps)
            last = picture.pixels
        }
    }
    #expect(last?.widthPx == player.manifest.picture.widthPx)
}

@Test func aCancelledDrawingEnds() async throws {
    let player = try Package(place).player(Halves())
    let task = Task {
        withUnsafeCurrentTask { $0?.cancel() }
        try await player.draw([Request("a")]) { _ in }
    }
    await #expect(throws: CancellationError.self) { try await task.value }
}

@Test func requestsThatCannotBeDrawnNameTheirField() async throws {
    let player = try Package(place).player(Halves())
    for (request, wanted) in [
        (Request("a", strength: 0.5), "strength"),
        (Request("a", strength: .nan), "strength"),
        (Request(String(repeating: "a", count: 100_001)), "prompt"),
    ] {
        do {
            _ = try await player.picture(request)
            Issue.record("nothing was thrown")
        } catch FourstepError.request(let field, _) {
            #expect(field == wanted)
        }
    }
}
