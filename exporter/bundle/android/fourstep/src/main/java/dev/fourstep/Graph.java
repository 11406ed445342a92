package dev.fourstep;

import java.util.Map;

/** A graph that an engine has opened. One thread at a time runs it. */
public interface Graph extends AutoCloseable {
    /**
     * The outputs for these inputs, each by the name of its port.
     *
     * @throws Exception whatever the engine raises; it is said with the graph's name
     */
    Map<String, Tensor> run(Map<String, Tensor> inputs) throws Exception;

    /** End a run early, from another thread; an engine that cannot lets it end by itself. */
    default void interrupt() {}

    /** Let go of its memory. */
    @Override
    void close();
}
