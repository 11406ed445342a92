package dev.fourstep;

import dev.fourstep.Manifest.Schedule;

/** The schedule in float, operation by operation as the format writes it. */
final strictfp class Steps {
    private Steps() {}

    /** One step: the latent after step {@code step}, counted from 0; noise where it takes some. */
    static float[] advance(
            Schedule schedule, int step, float[] latent, float[] velocity, float[] noise) {
        float sigma = (float) (double) schedule.sigmas.get(step);
        float following = (float) (double) schedule.sigmas.get(step + 1);
        float[] found = new float[latent.length];
        if (!takesNoise(schedule)) {
            float change = following - sigma;
            for (int i = 0; i < found.length; i++) {
                float moved = change * velocity[i];
                found[i] = latent[i] + moved;
            }
            return found;
        }
        float kept = 1f - following;
        for (int i = 0; i < found.length; i++) {
            float moved = sigma * velocity[i];
            float clean = latent[i] - moved;
            float part = kept * clean;
            float fresh = following * noise[i];
            found[i] = part + fresh;
        }
        return found;
    }

    static boolean takesNoise(Schedule schedule) {
        return schedule.mode.equals("renoise");
    }

    /** The velocity away from that of a negative prompt. */
    static float[] guided(float scale, float[] velocity, float[] negative) {
        float[] found = new float[velocity.length];
        for (int i = 0; i < found.length; i++) {
            float apart = velocity[i] - negative[i];
            float scaled = scale * apart;
            found[i] = negative[i] + scaled;
        }
        return found;
    }

    /** The latent of a picture that enters the schedule at a step. */
    static float[] begin(Schedule schedule, int step, float[] encoded, float[] noise) {
        float sigma = (float) (double) schedule.sigmas.get(step);
        float kept = 1f - sigma;
        float[] found = new float[noise.length];
        for (int i = 0; i < found.length; i++) {
            float fresh = sigma * noise[i];
            float part = kept * encoded[i];
            found[i] = fresh + part;
        }
        return found;
    }

    /** The step at which image to image enters the schedule. */
    static int first(Schedule schedule, double strength) {
        if (!(strength > 0 && strength <= 1)) {
            throw new RequestException("strength", strength + ": must be above 0 and at most 1");
        }
        int steps = schedule.steps();
        return Math.min((int) (steps - Math.min(steps * strength, steps)), steps - 1);
    }
}
