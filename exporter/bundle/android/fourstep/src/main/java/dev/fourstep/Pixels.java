package dev.fourstep;

/** Numbers between pictures of whole levels and tensors (1, 3, height, width), in float. */
public final strictfp class Pixels {
    static final String NOT_FINITE = "holds NaN or infinity: numbers left the range of its weights "
            + "or of 16 bits; build it with a wider scheme";

    private final float scale;
    private final float offset;
    private final int levels;
    private final float fromScale;
    private final float fromOffset;

    Pixels(Node node) {
        scale = (float) number(node, "to_levels_scale", 0.5);
        offset = (float) number(node, "to_levels_offset", 0.5);
        fromScale = (float) number(node, "from_levels_scale", 2.0);
        fromOffset = (float) number(node, "from_levels_offset", -1.0);
        levels = node == null || node.find("levels") == null ? 255 : node.get("levels").size(255);
        if (node != null && node.find("rounding") != null) {
            node.get("rounding").oneOf("half to even");
        }
    }

    private static double number(Node node, String key, double absent) {
        return node == null || node.find(key) == null ? absent : node.get(key).number();
    }

    /** Values (1, 3, height, width) as levels, a half to the even neighbour. */
    Levels toLevels(float[] image, int heightPx, int widthPx, String what) {
        if (!Tensor.isFinite(image)) {
            throw new PackageException(what + " " + NOT_FINITE);
        }
        int count = heightPx * widthPx;
        byte[] rgb = new byte[3 * count];
        for (int i = 0; i < count; i++) {
            for (int k = 0; k < 3; k++) {
                float unit = image[k * count + i] * scale + offset;
                float inside = Math.min(Math.max(unit, 0f), 1f) * levels;
                rgb[3 * i + k] = (byte) Math.rint(inside);
            }
        }
        return new Levels(widthPx, heightPx, rgb);
    }

    /** Levels as values (1, 3, height, width). */
    Tensor fromLevels(Levels picture) {
        int count = picture.heightPx * picture.widthPx;
        float[] values = new float[3 * count];
        for (int i = 0; i < count; i++) {
            for (int k = 0; k < 3; k++) {
                float unit = (picture.rgb[3 * i + k] & 0xFF) / (float) levels;
                values[k * count + i] = fromScale * unit + fromOffset;
            }
        }
        return Tensor.of(values, 1, 3, picture.heightPx, picture.widthPx);
    }

    /**
     * A small picture of a latent: colours = latent @ factors + bias, in double.
     *
     * @param latent (1, channels, h, w)
     * @param map (channels + 1, 3): factors, then the bias
     */
    Levels preview(Tensor latent, double[][] map) {
        if (!latent.isFinite()) {
            throw new PackageException("the latent of a preview " + NOT_FINITE);
        }
        int channels = latent.shape[1];
        int count = latent.shape[2] * latent.shape[3];
        byte[] rgb = new byte[3 * count];
        for (int i = 0; i < count; i++) {
            for (int k = 0; k < 3; k++) {
                double colour = map[channels][k];
                for (int c = 0; c < channels; c++) {
                    colour += latent.floats[c * count + i] * map[c][k];
                }
                double unit = Math.min(Math.max(colour * scale + offset, 0), 1);
                rgb[3 * i + k] = (byte) Math.rint(unit * levels);
            }
        }
        return new Levels(latent.shape[3], latent.shape[2], rgb);
    }
}
