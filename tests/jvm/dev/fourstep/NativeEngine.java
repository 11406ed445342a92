package dev.fourstep;

import dev.fourstep.Manifest.GraphEntry;
import java.io.File;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;

/** For tests: an engine of the loop in C++, graph by graph over its C interface. */
final class NativeEngine implements Engine {
    private final String backend;

    NativeEngine(String library, String backend) {
        System.load(library);
        this.backend = backend;
    }

    private static native long open(
            String backend, String entry, String[] names, String[] values) throws IOException;

    private static native Object[] run(
            long graph, String[] names, long[][] shapes, Object[] values) throws IOException;

    private static native void interrupt(long graph);

    private static native void close(long graph);

    @Override
    public boolean opens(String name) {
        return name.equals(backend);
    }

    @Override
    public Graph open(File entry, GraphEntry graph) throws IOException {
        String[] names = graph.session.keySet().toArray(new String[0]);
        String[] values = graph.session.values().toArray(new String[0]);
        long handle = open(backend, entry.getPath(), names, values);
        return new Graph() {
            @Override
            public Map<String, Tensor> run(Map<String, Tensor> inputs) throws IOException {
                return NativeEngine.called(handle, inputs);
            }

            @Override
            public void interrupt() {
                NativeEngine.interrupt(handle);
            }

            @Override
            public void close() {
                NativeEngine.close(handle);
            }
        };
    }

    private static Map<String, Tensor> called(long handle, Map<String, Tensor> inputs)
            throws IOException {
        int count = inputs.size();
        String[] names = inputs.keySet().toArray(new String[0]);
        long[][] shapes = new long[count][];
        Object[] values = new Object[count];
        for (int i = 0; i < count; i++) {
            Tensor value = inputs.get(names[i]);
            shapes[i] = new long[value.shape.length];
            for (int k = 0; k < shapes[i].length; k++) {
                shapes[i][k] = value.shape[k];
            }
            values[i] = value.floats == null ? value.ints : value.floats;
        }
        Object[] found = run(handle, names, shapes, values);
        Map<String, Tensor> outputs = new LinkedHashMap<>();
        for (int i = 0; i < found.length; i += 3) {
            long[] sizes = (long[]) found[i + 1];
            int[] shape = new int[sizes.length];
            for (int k = 0; k < shape.length; k++) {
                shape[k] = (int) sizes[k];
            }
            outputs.put((String) found[i], found[i + 2] instanceof float[]
                    ? Tensor.of((float[]) found[i + 2], shape)
                    : Tensor.of((int[]) found[i + 2], shape));
        }
        return outputs;
    }
}
