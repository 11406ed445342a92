package android.app;

/** For compiling alone: the signatures of the real class that are used. */
public class ActivityManager {
    public native void getMemoryInfo(MemoryInfo into);

    public native int getLargeMemoryClass();

    public static class MemoryInfo {
        public long availMem;
        public long totalMem;
        public long threshold;
        public boolean lowMemory;
    }
}
