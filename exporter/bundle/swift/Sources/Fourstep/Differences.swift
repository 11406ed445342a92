import Foundation

/// A file as what differs from another: what graphs of further sizes are kept as.
public enum Differences {
    private static let mostShift = 28  // of a count: seven bits to a byte, the lowest first

    /// What edits make of a base: so many bytes of it that stay, so many that are left out and so many
    /// new ones, which follow, over and over; never longer than both together.
    ///
    /// Throws `FourstepError.package` for edits that are not of this base.
    public static func applied(_ edits: Data, to base: Data) throws -> Data {
        let edits = [UInt8](edits)
        let base = [UInt8](base)
        var found: [UInt8] = []
        var at = 0
        var atBase = 0
        while at < edits.count {
            let kept = try number(edits, &at)
            let left = try number(edits, &at)
            let added = try number(edits, &at)
            guard kept + left <= base.count - atBase, added <= edits.count - at else { throw wrong }
            found += base[atBase..<(atBase + kept)]
            found += edits[at..<(at + added)]
            atBase += kept + left
            at += added
        }
        guard atBase == base.count else { throw wrong }
        return Data(found)
    }

    private static var wrong: FourstepError {
        .package("differences that are not of this file; copy or build the package again")
    }

    private static func number(_ edits: [UInt8], _ at: inout Int) throws -> Int {
        var value = 0
        for shift in stride(from: 0, through: mostShift, by: 7) where at < edits.count {
            let byte = Int(edits[at])
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80 {
                return value
            }
        }
        throw wrong
    }
}
