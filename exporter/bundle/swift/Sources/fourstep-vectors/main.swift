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
        let whole = try Package(URL(fileURLWithPath: folder))
        var compared = 0
        var differing = 0
        for size in whole.sizes {
            let vectors = try Vectors(whole.at(size))
            for failure in vectors.failures {
                say("\(folder): \(size): \(failure)")
            }
            compared += vectors.compared
            differing += vectors.failures.count
        }
        say("\(folder): \(compared - differing) of \(compared) vectors are the same")
        status = max(status, differing == 0 ? 0 : 1)
    } catch {
        say("\(error)", to: .standardError)
        status = 2
    }
}
exit(status)
