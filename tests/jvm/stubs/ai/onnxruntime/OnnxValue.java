package ai.onnxruntime;

/** For compiling alone: the signatures of the real class that are used. */
public interface OnnxValue extends AutoCloseable {
    @Override
    void close();
}
