package dev.fourstep;

import java.util.Map;
import java.util.concurrent.CancellationException;

/** Ends a drawing at any moment, from any thread: between two graphs, or in one that can be. */
public final class Stop {
    private boolean isAsked;
    private Graph running;

    /** The drawing ends as soon as it can, with a {@link CancellationException}. */
    public synchronized void request() {
        isAsked = true;
        if (running != null) {
            running.interrupt();
        }
    }

    public synchronized boolean isRequested() {
        return isAsked;
    }

    void check() {
        if (isRequested()) {
            throw new CancellationException("the drawing was cancelled");
        }
    }

    /** Run a graph that {@link #request} may interrupt. */
    Map<String, Tensor> run(Graph graph, Map<String, Tensor> inputs) throws Exception {
        synchronized (this) {
            check();
            running = graph;
        }
        try {
            return graph.run(inputs);
        } catch (Exception error) {
            check(); // an engine that was interrupted raises something of its own
            throw error;
        } finally {
            synchronized (this) {
                running = null;
            }
        }
    }
}
