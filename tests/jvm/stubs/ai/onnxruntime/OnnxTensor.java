package ai.onnxruntime;

/** For compiling alone: the signatures of the real class that are used. */
public class OnnxTensor extends OnnxTensorLike {
    public static native OnnxTensor createTensor(
            OrtEnvironment environment, java.nio.FloatBuffer data, long[] shape)
            throws OrtException;

    public static native OnnxTensor createTensor(
            OrtEnvironment environment, java.nio.IntBuffer data, long[] shape) throws OrtException;

    public native TensorInfo getInfo();

    public native java.nio.FloatBuffer getFloatBuffer();

    @Override
    public native void close();
}
