package ai.onnxruntime;

/** For compiling alone: the signatures of the real class that are used. */
public enum OrtLoggingLevel {
    ORT_LOGGING_LEVEL_ERROR
}
