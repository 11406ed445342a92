import Foundation

/// What this library says in one line: what is wrong, where, and what to do next.
public enum FourstepError: Error, Equatable, Sendable {
    /// A package is damaged, of another format, or a graph of it gave no numbers.
    case package(String)
    /// A request that cannot be drawn with; `field` names what of it.
    case request(field: String, String)
}

extension FourstepError: LocalizedError, CustomStringConvertible {
    public var description: String {
        switch self {
        case .package(let message): message
        case .request(let field, let message): "\(field): \(message)"
        }
    }

    public var errorDescription: String? { description }
}

/// A text that is not what it should be; whoever reads the file adds its name.
struct Malformed: Error {
    let what: String
}

let notFinite = """
    holds NaN or infinity: numbers left the range of its weights or of 16 bits; build it with a \
    wider scheme
    """

/// A text in quotation marks, at most 60 characters of it.
func quoted(_ text: String) -> String {
    let shown = text.count <= 60 ? text : text.prefix(60) + "..."
    return "'" + shown.replacingOccurrences(of: "\n", with: "\\n") + "'"
}
