"""The loop that draws: prompts to ids, noise, steps, pixels. No torch."""
