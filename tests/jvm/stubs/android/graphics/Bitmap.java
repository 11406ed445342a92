package android.graphics;

/** For compiling alone: the signatures of the real class that are used. */
public final class Bitmap {
    public enum Config {
        ARGB_8888
    }

    public static native Bitmap createBitmap(int[] argb, int width, int height, Config config);

    public static native Bitmap createScaledBitmap(
            Bitmap from, int width, int height, boolean isFiltered);

    public native int getWidth();

    public native int getHeight();

    public native void getPixels(
            int[] into, int offset, int stride, int x, int y, int width, int height);
}
