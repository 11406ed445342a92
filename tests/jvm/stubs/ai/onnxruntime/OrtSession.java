package ai.onnxruntime;

/** For compiling alone: the signatures of the real class that are used. */
public class OrtSession implements AutoCloseable {
    public native Result run(
            java.util.Map<String, ? extends OnnxTensorLike> inputs, RunOptions options)
            throws OrtException;

    @Override
    public native void close() throws OrtException;

    public static class SessionOptions implements AutoCloseable {
        public native void setCPUArenaAllocator(boolean isOn) throws OrtException;

        public native void setIntraOpNumThreads(int threads) throws OrtException;

        public native void addConfigEntry(String key, String value) throws OrtException;

        @Override
        public native void close();
    }

    public static class RunOptions implements AutoCloseable {
        public RunOptions() throws OrtException {}

        public native void setTerminate(boolean ends) throws OrtException;

        @Override
        public native void close();
    }

    public static class Result implements AutoCloseable {
        public native java.util.Optional<OnnxValue> get(String name);

        @Override
        public native void close();
    }
}
