package dev.fourstep;

import dev.fourstep.Manifest.GraphEntry;
import java.io.File;
import java.util.Map;

/** For tests: an engine that counts what it opens. */
final class Counted implements Engine {
    private final Engine engine;
    int open; // graphs that are
    int opened; // graphs that were

    private Counted(Engine engine) {
        this.engine = engine;
    }

    /**
     * The engine that a word names: {@code onnxruntime} is the adapter on it, as packages run there,
     * {@code onnxruntime-exact} one that rounds nothing, and anything else the library of a native one.
     */
    static Counted of(String word, String backend) throws ReflectiveOperationException {
        if (!word.startsWith("onnxruntime")) {
            return new Counted(new NativeEngine(word, backend));
        }
        Engine engine = (Engine) Class.forName("dev.fourstep.onnx.OnnxEngine")
                .getConstructor(int.class, boolean.class)
                .newInstance(0, word.endsWith("-exact"));
        return new Counted(engine);
    }

    @Override
    public boolean opens(String backend) {
        return engine.opens(backend);
    }

    @Override
    public Graph open(File entry, GraphEntry graph) throws Exception {
        Graph inner = engine.open(entry, graph);
        open++;
        opened++;
        return new Graph() {
            @Override
            public Map<String, Tensor> run(Map<String, Tensor> inputs) throws Exception {
                return inner.run(inputs);
            }

            @Override
            public void interrupt() {
                inner.interrupt();
            }

            @Override
            public void close() {
                open--;
                inner.close();
            }
        };
    }
}
