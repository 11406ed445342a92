package ai.onnxruntime;

/** For compiling alone: the signatures of the real class that are used. */
public final class OrtEnvironment {
    public static native OrtEnvironment getEnvironment(OrtLoggingLevel level, String name);

    public native void setTelemetry(boolean isOn) throws OrtException;

    public native OrtSession createSession(String path, OrtSession.SessionOptions options)
            throws OrtException;
}
