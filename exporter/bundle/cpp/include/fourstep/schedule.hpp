/// @file
/// The schedule's arithmetic, in float32, operation by operation as the package format writes it.
/// Compile with -ffp-contract=off: a fused multiply-add would draw another picture.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <vector>

#include "manifest.hpp"

namespace fourstep {

/// The latent of a picture that enters the schedule at a step: sigma * noise + (1 - sigma) * start.
inline std::vector<float> begin(const Schedule& schedule, int step, const std::vector<float>& start,
                                const std::vector<float>& noise) {
  const auto sigma = static_cast<float>(schedule.sigmas[static_cast<std::size_t>(step)]);
  const float rest = 1.0F - sigma;
  std::vector<float> found(noise.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    const float noisy = sigma * noise[i], clean = rest * start[i];
    found[i] = noisy + clean;
  }
  return found;
}

/// The velocity away from that of a negative prompt: n + scale * (v - n).
inline std::vector<float> guided(const Guidance& guidance, const std::vector<float>& velocity,
                                 const std::vector<float>& negative) {
  const auto scale = static_cast<float>(guidance.scale);
  std::vector<float> found(velocity.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    const float difference = velocity[i] - negative[i];
    const float apart = scale * difference;
    found[i] = negative[i] + apart;
  }
  return found;
}

/// One step: what the latent becomes.
/// @param noise draws as much as the latent has; called where the mode takes some.
inline std::vector<float> advance(const Schedule& schedule, int step,
                                  const std::vector<float>& latent,
                                  const std::vector<float>& velocity,
                                  const std::function<std::vector<float>()>& noise) {
  const auto at = static_cast<std::size_t>(step);
  const auto sigma = static_cast<float>(schedule.sigmas[at]);
  const auto following = static_cast<float>(schedule.sigmas[at + 1]);
  std::vector<float> found(latent.size());
  if (!schedule.renoise) {
    const float change = following - sigma;
    for (std::size_t i = 0; i < found.size(); ++i) {
      const float moved = change * velocity[i];
      found[i] = latent[i] + moved;
    }
    return found;
  }
  const std::vector<float> drawn = noise();
  const float rest = 1.0F - following;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const float moved = sigma * velocity[i];
    const float clean = latent[i] - moved;
    const float kept = rest * clean, added = following * drawn[i];
    found[i] = kept + added;
  }
  return found;
}

/// The step at which a picture enters the schedule, by a strength in (0, 1].
inline int first_step(const Schedule& schedule, double strength) {
  const double steps = schedule.steps();
  const int start = static_cast<int>(steps - std::min(steps * strength, steps));
  return std::min(start, schedule.steps() - 1);
}

}  // namespace fourstep
