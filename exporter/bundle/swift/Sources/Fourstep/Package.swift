import Foundation

/// A package on disk: opened, checked against its digests, played.
///
/// It may lie in several folders, as a store's asset packs put it; the first holds the manifest.
public struct Package: Sendable {
    private static let manifestName = "manifest.json"
    private static let digestName = "manifest.sha256"
    private static let mostManifestBytes = 1 << 26
    private static let chunkBytes = 1 << 20
    private static let again = "; copy or build the package again"

    /// Of the size that is drawn.
    public let manifest: Manifest
    private let all: [(size: String, manifest: Manifest)]
    private let folders: [URL]

    /// Open a package; nothing of its manifest is believed before it has its digest.
    public init(_ folders: URL...) throws {
        try self.init(folders: folders)
    }

    /// The same, of folders in a list.
    public init(folders: [URL]) throws {
        guard let first = folders.first else {
            throw FourstepError.request(field: "folder", "none is given")
        }
        let file = first.appendingPathComponent(Self.manifestName)
        guard FileManager.default.fileExists(atPath: file.path) else {
            throw FourstepError.request(
                field: "folder",
                "\(first.path): not a package (no \(Self.manifestName)); name one that fourstep build wrote"
            )
        }
        let text = try Self.read(file)
        let digest = first.appendingPathComponent(Self.digestName)
        guard FileManager.default.fileExists(atPath: digest.path) else {
            throw FourstepError.package("\(digest.path): is missing; copy the package again")
        }
        let line = "\(Sha256.hex(of: text))  \(Self.manifestName)\n"
        guard text.count <= Self.mostManifestBytes, try Self.read(digest) == Data(line.utf8) else {
            throw FourstepError.package(
                "\(file.path): damaged: it is not what \(Self.digestName) says; copy the package again"
            )
        }
        do {
            all = try Manifest.parse(text)
        } catch let error as Malformed {
            throw FourstepError.package(
                """
                \(file.path): damaged, or of another format: \(error.what); update this library, or \
                build the package again
                """)
        }
        manifest = all[0].manifest
        self.folders = folders
    }

    private init(_ whole: Package, _ manifest: Manifest) {
        self.manifest = manifest
        all = whole.all
        folders = whole.folders
    }

    /// The sizes of pictures that it draws, such as `768x512`: the first unless told.
    public var sizes: [String] { all.map(\.size) }

    /// The package as if it were of this size alone.
    ///
    /// - Parameter size: one of `sizes`.
    public func at(_ size: String) throws -> Package {
        guard let found = all.first(where: { $0.size == size }) else {
            throw FourstepError.request(
                field: "size",
                """
                this package does not draw \(quoted(size)); its sizes: \
                \(sizes.joined(separator: ", "))
                """)
        }
        return Package(self, found.manifest)
    }

    /// What draws with this package. Every file but the graphs is checked here, those when opened:
    /// call it off the main thread.
    ///
    /// - Parameter keepsOpen: graphs stay open for the next drawing: faster, in the memory of all.
    public func player(_ engine: some Engine, keepsOpen: Bool = false) throws -> Player {
        guard engine.opens(manifest.backend) else {
            throw FourstepError.package(
                """
                \(folders[0].path): is for \(manifest.backend), which \(type(of: engine)) does not \
                open; build the package for another backend
                """)
        }
        for file in manifest.files.values {
            _ = try check(file)
        }
        return Player(self, engine, try tokenizers(), keepsOpen: keepsOpen)
    }

    /// The tokenizer of each text encoder.
    func tokenizers() throws -> [String: Tokenizer] {
        try manifest.tokenizers.mapValues { entry -> Tokenizer in
            do {
                return try Tokenizer(read(entry.path), entry)
            } catch let error as Malformed {
                throw FourstepError.package(
                    "\(entry.path): not a tokenizer that is known: \(error.what)")
            }
        }
    }

    /// What is in a file beside the graphs, as its digest says.
    func read(_ path: String) throws -> Data {
        guard let entry = manifest.files[path] else {
            throw FourstepError.package("\(path): is not among the package's files")
        }
        let file = try confined(path)
        let content = try Self.read(file)
        try compare(file, entry, content.count, Sha256.hex(of: content))
        return content
    }

    /// Open a graph, or a part of one, whose files are what their digests say.
    func open(_ name: String, _ engine: any Engine) throws -> any Graph {
        guard let graph = manifest.graphs[name] else {
            throw FourstepError.package("the package has no graph '\(name)'")
        }
        let states = try graph.files.map(check)
        let entry = try confined(graph.entry)
        let opened: any Graph
        do {
            opened = try engine.open(entry, graph)
        } catch {
            throw FourstepError.package(
                "\(entry.path): \(type(of: engine)) cannot open it: \(error.localizedDescription)")
        }
        for (file, state) in zip(graph.files, states) {
            let now = try confined(file.path)
            guard try Self.state(now) == state else {
                throw FourstepError.package(
                    "\(now.path): changed while it was being read; open the package again")
            }
        }
        return opened
    }

    /// A file's size and time, which show a change.
    private struct State: Equatable {
        let bytes: Int
        let changed: Date?
    }

    private static func state(_ file: URL) throws -> State {
        do {
            let found = try FileManager.default
                .attributesOfItem(atPath: file.resolvingSymlinksInPath().path)
            let bytes = (found[.size] as? NSNumber)?.intValue ?? -1
            return State(bytes: bytes, changed: found[.modificationDate] as? Date)
        } catch {
            throw unreadable(file, error)
        }
    }

    /// Compare a file with its size and digest.
    private func check(_ entry: Manifest.FileEntry) throws -> State {
        let file = try confined(entry.path)
        let state = try Self.state(file)
        guard state.bytes == entry.bytes else {
            try compare(file, entry, state.bytes, "")
            return state
        }
        var hash = Sha256()
        var count = 0
        do {
            let handle = try FileHandle(forReadingFrom: file)
            defer { try? handle.close() }
            while let part = try handle.read(upToCount: Self.chunkBytes), !part.isEmpty {
                hash.update(part)
                count += part.count
            }
        } catch {
            throw Self.unreadable(file, error)
        }
        try compare(file, entry, count, hash.hex())
        return state
    }

    private func compare(
        _ file: URL, _ entry: Manifest.FileEntry, _ bytes: Int, _ sha256: String
    ) throws {
        guard bytes == entry.bytes else {
            throw FourstepError.package(
                """
                \(file.path): damaged: \(bytes) bytes where the manifest says \(entry.bytes)\
                \(Self.again)
                """)
        }
        guard sha256 == entry.sha256 else {
            throw FourstepError.package(
                "\(file.path): damaged: SHA-256 differs\(Self.again)")
        }
    }

    /// Where a path of the manifest lies: in the first folder that has it. Throws where a link leaves
    /// the package, or the blobs of a hub's cache that it is in.
    private func confined(_ path: String) throws -> URL {
        let places = folders.map { $0.appendingPathComponent(path) }
        let found = places.first { FileManager.default.fileExists(atPath: $0.path) }
        guard let file = found else {
            throw FourstepError.package(
                "\(places[0].path): cannot be read: no such file\(Self.again)")
        }
        let real = file.resolvingSymlinksInPath().path
        for folder in folders {
            let home = folder.resolvingSymlinksInPath()
            if real.hasPrefix(home.path + "/") || real.hasPrefix(blobs(home) + "/") {
                return file
            }
        }
        throw FourstepError.package(
            "\(file.path): a link that leaves the package, to \(real); copy the package with its files")
    }

    /// Where a hub's cache keeps the files of the snapshot that a folder is in, or the folder itself.
    private func blobs(_ home: URL) -> String {
        var place = home
        while place.pathComponents.count > 3 {
            let parent = place.deletingLastPathComponent()
            let repository = parent.deletingLastPathComponent()
            if parent.lastPathComponent == "snapshots",
                repository.lastPathComponent.hasPrefix("models--")
            {
                return repository.appendingPathComponent("blobs").path
            }
            place = parent
        }
        return home.path
    }

    private static func read(_ file: URL) throws -> Data {
        do {
            return try Data(contentsOf: file)
        } catch {
            throw unreadable(file, error)
        }
    }

    private static func unreadable(_ file: URL, _ error: any Error) -> FourstepError {
        .package(
            "\(file.path): cannot be read: \(error.localizedDescription); copy the package again")
    }
}
