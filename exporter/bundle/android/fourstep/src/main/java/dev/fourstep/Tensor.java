package dev.fourstep;

import java.util.Arrays;

/** Values of a graph's port: floats or ints, last axis fastest. Nobody changes them. */
public final class Tensor {
    /** Sizes of the axes. */
    public final int[] shape;
    /** The values, or null where they are {@link #ints}. */
    public final float[] floats;
    /** The values, or null where they are {@link #floats}. */
    public final int[] ints;

    private Tensor(int[] shape, float[] floats, int[] ints) {
        long count = 1;
        for (int size : shape) {
            count *= size;
        }
        if (count != (floats == null ? ints.length : floats.length)) {
            throw new IllegalArgumentException(
                    Arrays.toString(shape) + " has not as many values as there are");
        }
        this.shape = shape;
        this.floats = floats;
        this.ints = ints;
    }

    public static Tensor of(float[] values, int... shape) {
        return new Tensor(shape, values, null);
    }

    public static Tensor of(int[] values, int... shape) {
        return new Tensor(shape, null, values);
    }

    /** Row {@code index} of the first axis, which stays with size 1. */
    Tensor row(int index) {
        int[] rowShape = shape.clone();
        rowShape[0] = 1;
        int count = (floats == null ? ints.length : floats.length) / shape[0];
        int from = index * count;
        return floats == null
                ? of(Arrays.copyOfRange(ints, from, from + count), rowShape)
                : of(Arrays.copyOfRange(floats, from, from + count), rowShape);
    }

    /** Whether all values are numbers. */
    boolean isFinite() {
        return floats == null || isFinite(floats);
    }

    static boolean isFinite(float[] values) {
        for (float value : values) {
            if (Float.isNaN(value) || Float.isInfinite(value)) {
                return false;
            }
        }
        return true;
    }
}
