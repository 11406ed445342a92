// swift-tools-version: 6.0
// What tests run of a bundle's runtime: FOURSTEP_BUNDLE names its folder. Where fourstep.h and its
// library are is said by `-Xcc -I` and `-Xlinker -L`.

import PackageDescription

let bundle = Context.environment["FOURSTEP_BUNDLE"] ?? "bundle"
let name = bundle.split(separator: "/").last.map(String.init) ?? bundle

let package = Package(
    name: "probe",
    dependencies: [.package(path: bundle)],
    targets: [
        .systemLibrary(name: "CFourstep"),
        .executableTarget(
            name: "probe", dependencies: ["CFourstep", .product(name: "Fourstep", package: name)]),
    ],
    swiftLanguageModes: [.v6]
)
