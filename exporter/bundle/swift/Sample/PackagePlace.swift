import Foundation
import Fourstep

/// The group that the app shares with its extension for Background Assets.
private let group = "group.dev.fourstep.sample"

/// Where the package lies: in the app's resources, or where the extension has put it.
func packagePlace() throws -> URL {
    if let inApp = Bundle.main.url(forResource: "package", withExtension: nil) {
        return inApp
    }
    let shared = FileManager.default.containerURL(forSecurityApplicationGroupIdentifier: group)
    let place = shared?.appendingPathComponent("package", isDirectory: true)
    guard let place, FileManager.default.fileExists(atPath: place.path) else {
        throw FourstepError.package("the weights are still being delivered")
    }
    return place
}
