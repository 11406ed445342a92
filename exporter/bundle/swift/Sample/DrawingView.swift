import CoreGraphics
import Fourstep
import FourstepCoreML
import SwiftUI

/// A prompt, a picture that comes into being step by step, and a button that draws or cancels.
struct DrawingView: View {
    @State private var prompt = "two red circles left of a blue square"
    @State private var picture: CGImage?
    @State private var status = ""
    @State private var drawing: Task<Void, Never>?
    @State private var player: Player?
    /// What the weights' licence wants shown where people see pictures; may be empty.
    private let attribution = "{{attribution}}"

    var body: some View {
        VStack(spacing: 16) {
            TextField("Prompt", text: $prompt, axis: .vertical)
                .textFieldStyle(.roundedBorder)
            Button(drawing == nil ? "Draw" : "Cancel", action: drawOrCancel)
                .buttonStyle(.borderedProminent)
            Text(status)
                .font(.footnote)
                .foregroundStyle(.secondary)
            if let picture {
                Image(picture, scale: 1, label: Text(prompt))
                    .resizable()
                    .scaledToFit()
            }
            Spacer()
            Text(verbatim: attribution)
                .font(.footnote)
        }
        .padding()
    }

    private func drawOrCancel() {
        if let drawing {
            drawing.cancel()
            return
        }
        drawing = Task {
            defer { drawing = nil }
            do {
                let request = Request(prompt, seed: UInt64.random(in: 0...UInt64.max))
                for try await event in try await ready().events([request]) {
                    show(event)
                }
            } catch is CancellationError {
                status = "Cancelled."
            } catch {
                status = "\(error)"
            }
        }
    }

    /// The player, made off the main actor: every file is read for its digest.
    private func ready() async throws -> Player {
        if let player {
            return player
        }
        status = "Checking the weights."
        let made = try await Task.detached {
            try Package(packagePlace()).player(CoreMLEngine())
        }.value
        player = made
        return made
    }

    private func show(_ event: Event) {
        switch event {
        case .remark(let text):
            status = text
        case .conditioned:
            status = "The prompt is read."
        case .step(let step):
            status = "Step \(step.step) of \(step.steps)"
            picture = step.preview.flatMap(image) ?? picture
        case .picture(let done):
            status = "Done."
            picture = image(done.pixels)
        }
    }

    private func image(_ levels: Levels) -> CGImage? {
        guard let data = CGDataProvider(data: Data(levels.rgb) as CFData) else { return nil }
        return CGImage(
            width: levels.widthPx, height: levels.heightPx, bitsPerComponent: 8, bitsPerPixel: 24,
            bytesPerRow: 3 * levels.widthPx, space: CGColorSpaceCreateDeviceRGB(),
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.none.rawValue), provider: data,
            decode: nil, shouldInterpolate: true, intent: .defaultIntent)
    }
}
