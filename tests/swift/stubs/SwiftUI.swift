// Signatures of what the sample uses of SwiftUI, with its isolation, and of Apple's Foundation.

@_exported import CoreGraphics

@MainActor @preconcurrency public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}

extension Never: View {
    public var body: Never { return fatalError("never shown") }
}

public protocol Leaf: View where Body == Never {}
extension Leaf {
    public var body: Never { return fatalError("never shown") }
}

public struct Shown: Leaf {}

@resultBuilder public struct ViewBuilder {
    public static func buildBlock(_ views: any View...) -> Shown { Shown() }
    public static func buildOptional(_ view: (any View)?) -> Shown { Shown() }
}

@propertyWrapper public struct Binding<Value> {
    public var wrappedValue: Value

    public init(wrappedValue: Value) {
        self.wrappedValue = wrappedValue
    }
}

@propertyWrapper public struct State<Value> {
    private let value: Value

    public init(wrappedValue: Value) {
        value = wrappedValue
    }

    public init() where Value: ExpressibleByNilLiteral {
        value = nil
    }

    public var wrappedValue: Value {
        get { value }
        nonmutating set {}
    }

    public var projectedValue: Binding<Value> { Binding(wrappedValue: value) }
}

public struct Axis: Sendable {
    public static let vertical = Axis()
}

public struct Font: Sendable {
    public static let footnote = Font()
}

public struct Style: Sendable {
    public static let roundedBorder = Style()
    public static let borderedProminent = Style()
    public static let secondary = Style()
}

extension View {
    public func textFieldStyle(_ style: Style) -> Shown { Shown() }
    public func buttonStyle(_ style: Style) -> Shown { Shown() }
    public func foregroundStyle(_ style: Style) -> Shown { Shown() }
    public func font(_ font: Font?) -> Shown { Shown() }
    public func scaledToFit() -> Shown { Shown() }
    public func padding() -> Shown { Shown() }
}

public struct VStack: Leaf {
    public init(spacing: Double? = nil, @ViewBuilder content: () -> Shown) {}
}

public struct Text: Leaf {
    public init(_ content: String) {}
    public init(verbatim content: String) {}
}

public struct TextField: Leaf {
    public init(_ title: String, text: Binding<String>, axis: Axis) {}
}

public struct Button: Leaf {
    public init(_ title: String, action: @escaping @MainActor () -> Void) {}
}

public struct Image: Leaf {
    public init(_ image: CGImage, scale: Double, label: Text) {}
    public func resizable() -> Image { self }
}

public struct Spacer: Leaf {
    public init() {}
}

@MainActor @preconcurrency public protocol Scene {}

public struct WindowGroup: Scene {
    public init(@ViewBuilder content: () -> Shown) {}
}

@MainActor @preconcurrency public protocol App {
    associatedtype Body: Scene
    var body: Body { get }
    init()
}

extension App {
    public static func main() {}
}

extension FileManager {
    public func containerURL(forSecurityApplicationGroupIdentifier groupIdentifier: String) -> URL? {
        nil
    }
}
