import Foundation
import Fourstep

// Compares packages with their golden files; exits with 1 if anything differs, 2 for what is none.

func say(_ line: String, to handle: FileHandle = .standardOutput) {
    handle.write(Data((line + "\n").utf8))
}

let folders = CommandLine.arguments.dropFirst()
var status: Int32 = folders.isEmpty ? 2 : 0
if folders.isEmpty {
    say("usage: fourstep-vectors PACKAGE...", to: .standardError)
}
for folder in folders {
    do {
        let vectors = try Vectors(Package(URL(fileURLWithPath: folder)))
        for failure in vectors.failures {
            say("\(folder): \(failure)")
        }
        let same = vectors.compared - vectors.failures.count
        say("\(folder): \(same) of \(vectors.compared) vectors are the same")
        status = max(status, vectors.failures.isEmpty ? 0 : 1)
    } catch {
        say("\(error)", to: .standardError)
        status = 2
    }
}
exit(status)
