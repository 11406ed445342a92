package dev.fourstep;

import dev.fourstep.Manifest.GraphEntry;
import dev.fourstep.Manifest.Port;
import java.io.Closeable;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * Draws with a package. Close it to let go of graphs that stayed open.
 *
 * <p>One drawing at a time: another thread that asks for one waits.
 */
public final class Player implements Closeable {
    final Package source;
    final Manifest manifest;
    final Map<String, Tokenizer> tokenizers;
    private final Engine engine;
    private final boolean keep;
    private final Map<String, Graph> opened = new LinkedHashMap<>();
    private boolean isClosed;

    Player(Package source, Engine engine, Map<String, Tokenizer> tokenizers, boolean keep) {
        this.source = source;
        this.manifest = source.manifest;
        this.tokenizers = tokenizers;
        this.engine = engine;
        this.keep = keep;
    }

    /**
     * Draw pictures; every graph is opened once for all of them.
     *
     * @param listener is told on this thread
     * @throws RequestException for what cannot be drawn, before anything is
     * @throws PackageException for a damaged package, or a graph that gives no numbers
     * @throws java.util.concurrent.CancellationException after {@link Stop#request}
     */
    public synchronized void draw(List<Request> requests, Stop stop, Event.Listener listener) {
        try {
            new Drawing(this, stop, listener).draw(requests);
        } finally {
            if (!keep) {
                releaseAll();
            }
        }
    }

    /** A picture of one prompt, without events between. */
    public Levels draw(Request request) {
        Levels[] found = new Levels[1];
        draw(Arrays.asList(request), new Stop(), event -> {
            if (event instanceof Event.Picture) {
                found[0] = ((Event.Picture) event).pixels;
            }
        });
        return found[0];
    }

    @Override
    public synchronized void close() {
        isClosed = true;
        releaseAll();
    }

    private void releaseAll() {
        for (Graph graph : opened.values()) {
            graph.close();
        }
        opened.clear();
    }

    /** A graph is not needed for now: unless graphs stay open, it is closed. */
    void release(String name) {
        Graph graph = keep ? null : opened.remove(name);
        if (graph != null) {
            graph.close();
        }
    }

    /**
     * Run a graph, or a part of one, which stays open until it is released.
     *
     * @param end what the call is for, in an error
     */
    Map<String, Tensor> run(String name, Map<String, Tensor> inputs, String end, Stop stop) {
        if (isClosed) {
            throw new IllegalStateException("this player was closed; ask the package for another");
        }
        stop.check();
        Graph graph = opened.get(name);
        if (graph == null) {
            graph = source.open(name, engine);
            opened.put(name, graph);
        }
        Map<String, Tensor> outputs;
        try {
            outputs = stop.run(graph, inputs);
        } catch (RuntimeException error) {
            throw error;
        } catch (Exception error) {
            throw new PackageException(name + ", " + end + ": cannot be run: "
                    + error.getMessage(), error);
        }
        return checked(manifest.graphs.get(name), outputs, end);
    }

    private static Map<String, Tensor> checked(
            GraphEntry graph, Map<String, Tensor> outputs, String end) {
        for (Port port : graph.outputs.values()) {
            Tensor value = outputs.get(port.name);
            String what = graph.name + ", " + end + ": its output '" + port.name + "' ";
            if (value == null || !port.takes(value.ints != null, value.shape)) {
                throw new PackageException(what + "has not the shape that the manifest says; build "
                        + "the package again");
            }
            if (!value.isFinite()) {
                throw new PackageException(what + Pixels.NOT_FINITE);
            }
        }
        return outputs;
    }
}
