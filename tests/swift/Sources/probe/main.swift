import Foundation

@testable import Fourstep

// For tests: `draw ...`, `ids TOKENIZER_JSON`, `check PACKAGE` or `whole PACKAGE BACKEND`.

/// Ids of prompts that come as lines of hexadecimal UTF-8, by a `tokenizer.json`.
func ids(_ file: String) throws {
    let entry = #"{"path": "a", "tokens": 77, "pad_id": 0}"#
    let node = Node(value: try Json.parse(Data(entry.utf8)), place: "")
    let content = try Data(contentsOf: URL(fileURLWithPath: file))
    let tokenizer: Tokenizer
    do {
        tokenizer = try Tokenizer(content, Manifest.TokenizerEntry(node))
    } catch let error as Malformed {
        print("refused: \(error.what)")
        return
    }
    while let line = readLine() {
        let digits = Array(line.utf8)
        let bytes = stride(from: 0, to: digits.count, by: 2).map { at in
            UInt8(String(decoding: digits[at..<(at + 2)], as: UTF8.self), radix: 16) ?? 0
        }
        print(try tokenizer.ids(String(decoding: bytes, as: UTF8.self)))
    }
}

/// Opens nothing.
struct Nothing: Engine {
    func opens(_ backend: String) -> Bool { true }

    func open(_ entry: URL, _ graph: Manifest.GraphEntry) throws -> any Graph {
        throw CancellationError()
    }
}

/// What has to be checked before anything runs.
func check(_ folder: String) {
    do {
        _ = try Package(URL(fileURLWithPath: folder)).player(Nothing())
        print("whole")
    } catch {
        print("\(error)")
    }
}

/// A package's graphs and pictures against its golden files.
func whole(_ folder: String, _ backend: String) async throws {
    let engine = NativeEngine(backend: backend)
    let vectors = try await Vectors(Package(URL(fileURLWithPath: folder)), by: engine)
    for failure in vectors.failures {
        print(failure)
    }
    print("\(vectors.compared) compared, open \(engine.counts.both.open)")
}

let words = Array(CommandLine.arguments.dropFirst())
switch words[0] {
case "draw": try await Draw(Array(words.dropFirst())).draw()
case "ids": try ids(words[1])
case "check": check(words[1])
case "whole": try await whole(words[1], words[2])
default: fatalError("no such word: \(words[0])")
}
