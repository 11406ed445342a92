/// The schedule in float, operation by operation as the format writes it.
enum Steps {
    /// One step: the latent after step `step`, counted from 0; noise where the mode takes some.
    static func advance(
        _ schedule: Manifest.Schedule, _ step: Int, _ latent: [Float], _ velocity: [Float],
        _ noise: [Float]
    ) -> [Float] {
        let sigma = Float(schedule.sigmas[step])
        let following = Float(schedule.sigmas[step + 1])
        if !schedule.takesNoise {
            let change = following - sigma
            return latent.indices.map { i in
                let moved = change * velocity[i]
                return latent[i] + moved
            }
        }
        let kept = 1 - following
        return latent.indices.map { i in
            let moved = sigma * velocity[i]
            let clean = latent[i] - moved
            let part = kept * clean
            let fresh = following * noise[i]
            return part + fresh
        }
    }

    /// The velocity away from that of a negative prompt.
    static func guided(_ scale: Float, _ velocity: [Float], _ negative: [Float]) -> [Float] {
        velocity.indices.map { i in
            let apart = velocity[i] - negative[i]
            let scaled = scale * apart
            return negative[i] + scaled
        }
    }

    /// The latent of a picture that enters the schedule at a step.
    static func begin(
        _ schedule: Manifest.Schedule, _ step: Int, _ encoded: [Float], _ noise: [Float]
    ) -> [Float] {
        let sigma = Float(schedule.sigmas[step])
        let kept = 1 - sigma
        return noise.indices.map { i in
            let fresh = sigma * noise[i]
            let part = kept * encoded[i]
            return fresh + part
        }
    }

    /// The step at which image to image enters the schedule.
    static func first(_ schedule: Manifest.Schedule, _ strength: Double) throws -> Int {
        guard strength > 0, strength <= 1 else {
            throw FourstepError.request(
                field: "strength", "\(strength): must be above 0 and at most 1")
        }
        let steps = Double(schedule.steps)
        return min(Int(steps - min(steps * strength, steps)), schedule.steps - 1)
    }
}
