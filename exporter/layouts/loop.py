"""The calls of a client of the diffusers layout in its order, in numpy: builds are checked by it.

No torch. Clients draw with their own loops; this one is as short as theirs are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.layouts.contract import Call
from exporter.layouts.schedule import ClientSchedule

NULL_TOKENS = 77  # zeros that GenAI puts in the place of T5


@dataclass(frozen=True)
class Text:
    """What a client makes of a prompt: states (1, N, D) and a pooled vector (1, P)."""

    states: np.ndarray
    pooled: np.ndarray


def encode(call: Call, ids: Mapping[str, np.ndarray], width: int) -> Text:
    """Run the text encoders.

    Args:
        ids: (1, tokens) for each folder of a text encoder.
        width: D, of the text's states.
    """
    clips = [call(name, {"input_ids": ids[name]}) for name in ("text_encoder", "text_encoder_2")]
    clip = np.concatenate([found["hidden_states.0"] for found in clips], 2)
    clip = np.pad(clip, ((0, 0), (0, 0), (0, width - clip.shape[2])))
    rest = np.zeros((1, NULL_TOKENS, width), np.float32)
    if "text_encoder_3" in ids:
        rest = call("text_encoder_3", {"input_ids": ids["text_encoder_3"]})["last_hidden_state"]
    pooled = np.concatenate([found["text_embeds"] for found in clips], 1)
    return Text(np.concatenate([clip, rest], 1), pooled)


def steps(
    call: Call, text: Text, noise: np.ndarray, schedule: ClientSchedule
) -> Iterator[np.ndarray]:
    """The latent (1, C, h, w) after each step, by the client's own timesteps and sigmas."""
    latent = noise
    sigmas: Sequence[float] = schedule.sigmas
    for i, timestep in enumerate(schedule.timesteps):
        given = {
            "hidden_states": latent,
            "encoder_hidden_states": text.states,
            "pooled_projections": text.pooled,
            "timestep": np.array([timestep], np.float32),
        }
        (velocity,) = call("transformer", given).values()
        latent = latent + np.float32(sigmas[i + 1] - sigmas[i]) * velocity
        yield latent


def decode(call: Call, latent: np.ndarray) -> np.ndarray:
    """The picture (1, 3, H, W), from -1 to 1."""
    return call("vae_decoder", {"latent_sample": latent})["sample"]
