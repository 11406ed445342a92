import Foundation
import Fourstep

/// Draws what its words say and says a line for each event.
///
/// `OUT [keep] [stop N] [preview] [size WxH] PACKAGE BACKEND [prompt TEXT] [seed N] [negative TEXT]
/// [image FILE WIDTH HEIGHT STRENGTH]...`: a package may be several folders, with `:` between; each
/// `prompt` begins a request. Pixels go to OUT/N.rgb, previews to OUT/N-STEP.rgb, latents to
/// OUT/N-STEP.latent.
struct Draw {
    let out: URL
    var keepsOpen = false
    var previews = false
    var stopAt = 0
    var size: String?
    let folders: [URL]
    let engine: NativeEngine
    var requests: [Request] = []

    init(_ words: [String]) throws {
        var rest = words[...]
        out = URL(fileURLWithPath: rest.removeFirst())
        while let option = rest.first, ["keep", "preview", "stop", "size"].contains(option) {
            rest.removeFirst()
            switch option {
            case "keep": keepsOpen = true
            case "preview": previews = true
            case "stop": stopAt = Int(rest.removeFirst()) ?? 0
            default: size = rest.removeFirst()
            }
        }
        folders = rest.removeFirst().split(separator: ":").map { URL(fileURLWithPath: String($0)) }
        engine = NativeEngine(backend: rest.removeFirst())
        while let word = rest.popFirst() {
            let last = requests.count - 1
            switch word {
            case "prompt": requests.append(Request(rest.removeFirst()))
            case "seed": requests[last].seed = Self.seed(rest.removeFirst())
            case "negative": requests[last].negative = rest.removeFirst()
            default:
                let rgb = [UInt8](try Data(contentsOf: URL(fileURLWithPath: rest.removeFirst())))
                let (width, height) = (Int(rest.removeFirst()) ?? 0, Int(rest.removeFirst()) ?? 0)
                requests[last].image = try Levels(widthPx: width, heightPx: height, rgb: rgb)
                requests[last].strength = Double(rest.removeFirst()) ?? .nan
            }
        }
    }

    private static func seed(_ text: String) -> UInt64 {
        UInt64(text) ?? UInt64(bitPattern: Int64(text) ?? 0)
    }

    func draw() async {
        do {
            let whole = try Package(folders: folders)
            let package = try size.map { try whole.at($0) } ?? whole
            let player = try package.player(engine, keepsOpen: keepsOpen)
            try await player.draw(requests, previews: previews, told)
            await player.close()
        } catch is CancellationError {
            print("cancelled")
        } catch {
            print("refused \(error)")
        }
        print("open \(engine.counts.both.open) opened \(engine.counts.both.opened)")
    }

    @Sendable private func told(_ event: Event) {
        switch event {
        case .remark(let text):
            print("remark \(text)")
        case .conditioned(let prompts):
            print("conditioned \(prompts)")
        case .step(let step):
            print("step \(step.index) \(step.step) of \(step.steps)")
            let name = "\(step.index)-\(step.step)"
            write(step.latent.floats.withUnsafeBytes { Data($0) }, "\(name).latent")
            if let preview = step.preview {
                write(Data(preview.rgb), "\(name).rgb")
            }
            if step.step == stopAt {
                withUnsafeCurrentTask { $0?.cancel() }
            }
        case .picture(let picture):
            print("picture \(picture.index)")
            write(Data(picture.pixels.rgb), "\(picture.index).rgb")
        }
    }

    private func write(_ data: Data, _ name: String) {
        do {
            try data.write(to: out.appendingPathComponent(name))
        } catch {
            fatalError("\(name): \(error)")
        }
    }
}
