package dev.fourstep;

/**
 * The noise that {@code torch.randn} draws with a CPU generator.
 *
 * <p>MT19937 (Matsumoto and Nishimura 1998), seeded with the low 32 bits of the seed; normals by Box
 * and Muller in double, rounded to float once. Successive draws go on with the stream.
 */
public final strictfp class Noise {
    static final int BLOCK = 16; // from so many values on they are drawn in blocks of so many
    private static final int SIZE = 624;
    private static final int MIDDLE = 397;

    private final int[] state = new int[SIZE];
    private int at = SIZE;
    private double spare = Double.NaN; // the second of a pair, for the next value

    public Noise(long seed) {
        state[0] = (int) seed;
        for (int i = 1; i < SIZE; i++) {
            state[i] = 1812433253 * (state[i - 1] ^ state[i - 1] >>> 30) + i;
        }
    }

    /** The next standard normals of the stream. */
    public float[] draw(int count) {
        float[] values = new float[count];
        if (count < BLOCK) {
            for (int i = 0; i < count; i++) {
                values[i] = (float) single();
            }
            return values;
        }
        double[] uniform = uniforms(count);
        for (int i = 0; i + BLOCK <= count; i += BLOCK) {
            block(uniform, i, values, i);
        }
        if (count % BLOCK != 0) { // the last 16 values are drawn again, as a block
            block(uniforms(BLOCK), 0, values, count - BLOCK);
        }
        return values;
    }

    private static void block(double[] uniform, int from, float[] values, int to) {
        int half = BLOCK / 2;
        for (int i = 0; i < half; i++) {
            double radius = Math.sqrt(-2.0 * Math.log(1.0 - uniform[from + i]));
            double angle = 2.0 * Math.PI * uniform[from + half + i];
            values[to + i] = (float) (radius * Math.cos(angle));
            values[to + half + i] = (float) (radius * Math.sin(angle));
        }
    }

    private double single() {
        if (!Double.isNaN(spare)) {
            double value = spare;
            spare = Double.NaN;
            return value;
        }
        double angle = 2.0 * Math.PI * uniform53();
        double radius = Math.sqrt(-2.0 * Math.log1p(-uniform53()));
        spare = radius * Math.sin(angle);
        return radius * Math.cos(angle);
    }

    private double[] uniforms(int count) {
        double[] found = new double[count];
        for (int i = 0; i < count; i++) {
            found[i] = (next() & 0xFFFFFF) * 0x1p-24;
        }
        return found;
    }

    private double uniform53() {
        long high = next() & 0xFFFFFFFFL;
        long low = next() & 0xFFFFFFFFL;
        return ((high << 32 | low) & ((1L << 53) - 1)) * 0x1p-53;
    }

    private int next() {
        if (at == SIZE) {
            twist();
        }
        int y = state[at++];
        y ^= y >>> 11;
        y ^= y << 7 & 0x9d2c5680;
        y ^= y << 15 & 0xefc60000;
        return y ^ y >>> 18;
    }

    private void twist() {
        for (int i = 0; i < SIZE; i++) {
            int y = state[i] & 0x80000000 | state[(i + 1) % SIZE] & 0x7fffffff;
            state[i] = state[(i + MIDDLE) % SIZE] ^ y >>> 1 ^ ((y & 1) == 0 ? 0 : 0x9908b0df);
        }
        at = 0;
    }
}
