package ai.onnxruntime;

/** For compiling alone: the signatures of the real class that are used. */
public class TensorInfo {
    public native long[] getShape();
}
