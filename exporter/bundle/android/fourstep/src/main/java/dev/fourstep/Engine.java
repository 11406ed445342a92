package dev.fourstep;

import dev.fourstep.Manifest.GraphEntry;
import java.io.File;

/** What computes: it opens graphs. One class an engine; this library has none built in. */
public interface Engine {
    /** Whether it opens graphs of a manifest's {@code backend}, such as {@code onnx}. */
    boolean opens(String backend);

    /**
     * Open a graph, or a part of one.
     *
     * @param entry its file or folder
     * @param graph its ports, and what it wants to be told ({@code session})
     * @throws Exception whatever the engine raises; it is said with the file's name
     */
    Graph open(File entry, GraphEntry graph) throws Exception;
}
