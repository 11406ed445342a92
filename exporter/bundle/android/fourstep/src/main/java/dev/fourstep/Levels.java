package dev.fourstep;

/** A picture of whole levels: rows of RGB, a byte (0 to 255, unsigned) each. */
public final class Levels {
    public final int widthPx;
    public final int heightPx;
    /** (height, width, 3). */
    public final byte[] rgb;

    public Levels(int widthPx, int heightPx, byte[] rgb) {
        if (widthPx < 1 || heightPx < 1 || rgb.length != 3L * widthPx * heightPx) {
            throw new RequestException("image", widthPx + " x " + heightPx
                    + " px need three bytes each, and there are " + rgb.length);
        }
        this.widthPx = widthPx;
        this.heightPx = heightPx;
        this.rgb = rgb;
    }

    /** 0xFFRRGGBB for each pixel, as Android's and AWT's pictures take them. */
    public int[] argb() {
        int[] found = new int[widthPx * heightPx];
        for (int i = 0; i < found.length; i++) {
            found[i] = 0xFF << 24 | (rgb[3 * i] & 0xFF) << 16 | (rgb[3 * i + 1] & 0xFF) << 8
                    | rgb[3 * i + 2] & 0xFF;
        }
        return found;
    }

    /** A picture of pixels 0xAARRGGBB, whose alpha is not looked at. */
    public static Levels ofArgb(int widthPx, int heightPx, int[] argb) {
        byte[] rgb = new byte[3 * argb.length];
        for (int i = 0; i < argb.length; i++) {
            rgb[3 * i] = (byte) (argb[i] >> 16);
            rgb[3 * i + 1] = (byte) (argb[i] >> 8);
            rgb[3 * i + 2] = (byte) argb[i];
        }
        return new Levels(widthPx, heightPx, rgb);
    }
}
