// swift-tools-version: 6.0
// The core needs Foundation alone, so that `swift build` and `swift test` run on Linux too; the
// engine on Core ML is empty where there is no Core ML.

import PackageDescription

let package = Package(
    name: "Fourstep",
    platforms: [.iOS(.v17), .macOS(.v14), .visionOS(.v1)],
    products: [
        .library(name: "Fourstep", targets: ["Fourstep"]),
        .library(name: "FourstepCoreML", targets: ["FourstepCoreML"]),
        .executable(name: "fourstep-vectors", targets: ["fourstep-vectors"]),
    ],
    targets: [
        .target(name: "Fourstep", resources: [.copy("unicode.bin")]),
        .target(name: "FourstepCoreML", dependencies: ["Fourstep"]),
        .executableTarget(name: "fourstep-vectors", dependencies: ["Fourstep"]),
        .testTarget(name: "FourstepTests", dependencies: ["Fourstep"]),
    ],
    swiftLanguageModes: [.v6]
)
