package dev.fourstep;

import java.math.BigInteger;

/** One picture to draw. Each {@code with} gives another request. */
public final class Request {
    private static final BigInteger LEAST_SEED = BigInteger.ONE.shiftLeft(63).negate();
    private static final BigInteger MOST_SEED = BigInteger.ONE.shiftLeft(64).subtract(BigInteger.ONE);

    public final String prompt;
    /** Of the noise; its low 32 bits count, as with torch's CPU generator. */
    public final long seed;
    /** The picture to start from, of the package's size, or null. */
    public final Levels image;
    /** How much of the schedule an image goes through, in (0, 1]. */
    public final double strength;
    /** What not to draw, or null: the package's own. */
    public final String negative;

    private Request(String prompt, long seed, Levels image, double strength, String negative) {
        this.prompt = prompt;
        this.seed = seed;
        this.image = image;
        this.strength = strength;
        this.negative = negative;
    }

    public static Request of(String prompt) {
        return new Request(prompt, 0, null, 1, null);
    }

    public Request withSeed(long newSeed) {
        return new Request(prompt, newSeed, image, strength, negative);
    }

    /** A seed as torch takes it: a whole number from -2^63 to 2^64 - 1. */
    public Request withSeed(String newSeed) {
        boolean isWhole = newSeed.matches("-?[0-9]{1,20}");
        BigInteger value = isWhole ? new BigInteger(newSeed) : MOST_SEED.add(BigInteger.ONE);
        if (value.compareTo(LEAST_SEED) < 0 || value.compareTo(MOST_SEED) > 0) {
            throw new RequestException("seed", Text.quoted(newSeed)
                    + ": a whole number from -2^63 to 2^64 - 1 is expected");
        }
        return withSeed(value.longValue());
    }

    /** Start from a picture of the package's size and go through so much of the schedule. */
    public Request withImage(Levels newImage, double newStrength) {
        return new Request(prompt, seed, newImage, newStrength, negative);
    }

    public Request withNegative(String newNegative) {
        return new Request(prompt, seed, image, strength, newNegative);
    }
}
