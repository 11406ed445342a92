package ai.onnxruntime;

/** For compiling alone: the signatures of the real class that are used. */
public class OrtException extends Exception {
    private static final long serialVersionUID = 1L;
}
