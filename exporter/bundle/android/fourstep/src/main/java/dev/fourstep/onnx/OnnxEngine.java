package dev.fourstep.onnx;

import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtException;
import ai.onnxruntime.OrtLoggingLevel;
import ai.onnxruntime.OrtSession;
import dev.fourstep.Engine;
import dev.fourstep.Graph;
import dev.fourstep.Manifest.GraphEntry;
import dev.fourstep.Manifest.Port;
import dev.fourstep.Tensor;
import java.io.File;
import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.util.LinkedHashMap;
import java.util.Map;

/**
 * Opens graphs with onnxruntime on the processor.
 *
 * <p>Its telemetry is off. Later versions than Android's begin with it when their library is loaded,
 * and heed the environment alone: on a desktop start the process with {@code
 * ORT_DISABLE_TELEMETRY=1}, or nothing is opened.
 */
public final class OnnxEngine implements Engine {
    private static final String SILENT = "ORT_DISABLE_TELEMETRY";

    private final OrtEnvironment environment;
    private final int threads;
    private final boolean isExact;

    /**
     * @param threads that compute; 0: as many as onnxruntime thinks fit
     */
    public OnnxEngine(int threads) throws OrtException {
        this(threads, false);
    }

    /**
     * @param threads that compute; 0: as many as onnxruntime thinks fit
     * @param isExact whether to compute in float32 also where the package's settings round
     *     activations, as {@code Vectors.compare} wants it
     */
    public OnnxEngine(int threads, boolean isExact) throws OrtException {
        beSilent();
        environment = OrtEnvironment.getEnvironment(
                OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR, "fourstep");
        environment.setTelemetry(false);
        this.threads = threads;
        this.isExact = isExact;
    }

    /** Before the library is loaded: by Android's own call, else by whoever started the process. */
    private static void beSilent() {
        try {
            Class.forName("android.system.Os")
                    .getMethod("setenv", String.class, String.class, boolean.class)
                    .invoke(null, SILENT, "1", true);
        } catch (ReflectiveOperationException error) {
            if (!"1".equals(System.getenv(SILENT))) {
                throw new IllegalStateException("onnxruntime would report what it does: start this "
                        + "process with " + SILENT + "=1 in its environment", error);
            }
        }
    }

    @Override
    public boolean opens(String backend) {
        return backend.equals("onnx");
    }

    @Override
    public Graph open(File entry, GraphEntry graph) throws OrtException {
        OrtSession.SessionOptions options = new OrtSession.SessionOptions();
        try {
            options.setCPUArenaAllocator(false); // memory is given back between graphs
            options.setIntraOpNumThreads(threads);
            String level = graph.session.get("accuracy_level");
            options.addConfigEntry("session.qdq_matmulnbits_accuracy_level",
                    level == null || isExact ? "0" : level);
            if (graph.session.containsKey("widened")) { // decoded now, not whenever it runs
                options.addConfigEntry("session.disable_quant_qdq", "1");
            }
            return new Opened(environment.createSession(entry.getPath(), options), options, graph);
        } catch (OrtException error) {
            options.close();
            throw error;
        }
    }

    private final class Opened implements Graph {
        private final OrtSession session;
        private final OrtSession.SessionOptions options;
        private final GraphEntry graph;
        private OrtSession.RunOptions running;

        Opened(OrtSession session, OrtSession.SessionOptions options, GraphEntry graph) {
            this.session = session;
            this.options = options;
            this.graph = graph;
        }

        @Override
        public Map<String, Tensor> run(Map<String, Tensor> inputs) throws OrtException {
            Map<String, OnnxTensor> given = new LinkedHashMap<>();
            OrtSession.RunOptions run = new OrtSession.RunOptions();
            setRunning(run);
            try {
                for (Map.Entry<String, Tensor> input : inputs.entrySet()) {
                    given.put(input.getKey(), given(input.getValue()));
                }
                try (OrtSession.Result found = session.run(given, run)) {
                    return taken(found);
                }
            } finally {
                setRunning(null);
                run.close();
                for (OnnxTensor tensor : given.values()) {
                    tensor.close();
                }
            }
        }

        private OnnxTensor given(Tensor value) throws OrtException {
            long[] shape = new long[value.shape.length];
            for (int i = 0; i < shape.length; i++) {
                shape[i] = value.shape[i];
            }
            return value.floats == null
                    ? OnnxTensor.createTensor(environment, IntBuffer.wrap(value.ints), shape)
                    : OnnxTensor.createTensor(environment, FloatBuffer.wrap(value.floats), shape);
        }

        private Map<String, Tensor> taken(OrtSession.Result found) throws OrtException {
            Map<String, Tensor> outputs = new LinkedHashMap<>();
            for (Port port : graph.outputs.values()) {
                OnnxTensor value = (OnnxTensor) found.get(port.name).orElse(null);
                if (value == null) {
                    continue; // the player says which one is missing
                }
                FloatBuffer buffer = value.getFloatBuffer();
                float[] floats = new float[buffer.remaining()];
                buffer.get(floats);
                long[] sizes = value.getInfo().getShape();
                int[] shape = new int[sizes.length];
                for (int i = 0; i < shape.length; i++) {
                    shape[i] = (int) sizes[i];
                }
                outputs.put(port.name, Tensor.of(floats, shape));
            }
            return outputs;
        }

        private synchronized void setRunning(OrtSession.RunOptions run) {
            running = run;
        }

        @Override
        public synchronized void interrupt() {
            if (running != null) {
                try {
                    running.setTerminate(true);
                } catch (OrtException error) {
                    throw new IllegalStateException(error);
                }
            }
        }

        @Override
        public void close() {
            try {
                session.close();
            } catch (OrtException error) {
                throw new IllegalStateException(error);
            } finally {
                options.close();
            }
        }
    }
}
