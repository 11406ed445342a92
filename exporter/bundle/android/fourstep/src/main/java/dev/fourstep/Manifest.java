package dev.fourstep;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * What a package says of itself, format 4.x ({@code docs/package-format.md}).
 *
 * <p>Keys that are not known are left out, absent ones get their defaults, values that are not known
 * are refused: they would mean another picture.
 */
public final class Manifest {
    static final String PATH =
            "(?!\\.{1,2}(?:/|$))[^/\\\\:\\x00-\\x1f\\x7f]+(?:/(?!\\.{1,2}(?:/|$))[^/\\\\:\\x00-\\x1f\\x7f]+)*";
    static final String NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}";
    private static final String DIGEST = "[0-9a-f]{64}";
    private static final long MOST = (1L << 53) - 1;
    private static final int MOST_INT = Integer.MAX_VALUE;

    public final String formatVersion;
    public final String name;
    public final String backend;
    public final String scheme;
    public final Schedule schedule;
    public final PictureEntry picture;
    /** By text encoder. */
    public final Map<String, TokenizerEntry> tokenizers;
    /** In the order of their turns. */
    public final List<Stage> stages;
    /** By name: graphs, and the parts of those that are cut. */
    public final Map<String, GraphEntry> graphs;
    public final List<Golden> golden;
    /** The path of hard prompts and their ids, or empty. */
    public final String goldenTokens;
    /** The path of noise by seeds and sizes, or empty. */
    public final String goldenNoise;
    /** Every file but the graphs' and the manifest's own, by path. */
    public final Map<String, FileEntry> files;
    /** Anonymous memory of a process that draws, graphs opened in turn; -1: not measured. */
    public final long predictedPeakBytes;

    private Manifest(Node node) {
        if (node.find("filter") != null) {
            throw node.get("filter").wrong("this runtime runs no filter, and would hand out what the "
                    + "package is not to show; draw with fourstep run");
        }
        formatVersion = node.get("format_version").text();
        name = node.get("name").text();
        backend = node.get("backend").matching(NAME);
        scheme = node.get("scheme").matching(NAME);
        schedule = new Schedule(node.get("schedule"));
        picture = new PictureEntry(node.get("picture"));
        checkNoise(node.get("noise"));
        tokenizers = map(node.get("text").get("tokenizers"), TokenizerEntry::new);
        stages = list(node.get("stages"), Stage::new);
        graphs = new LinkedHashMap<>();
        for (Node graph : node.get("graphs").items()) {
            GraphEntry entry = new GraphEntry(graph);
            if (graphs.put(entry.name, entry) != null) {
                throw graph.wrong("a second graph '" + entry.name + "'");
            }
        }
        Node vectors = node.get("golden");
        golden = vectors.find("pictures") == null
                ? Collections.<Golden>emptyList() : list(vectors.get("pictures"), Golden::new);
        goldenTokens = path(vectors, "tokens");
        goldenNoise = path(vectors, "noise");
        files = new LinkedHashMap<>();
        for (FileEntry file : list(node.get("files"), FileEntry::new)) {
            files.put(file.path, file);
        }
        Node peak = node.get("device").find("predicted_peak_bytes");
        predictedPeakBytes = peak == null ? -1 : peak.whole(0, MOST);
    }

    /**
     * The manifest in a file's bytes, as that of each size alone: by the size as it is written.
     *
     * @throws IllegalArgumentException naming the field that is wrong, or contradicts another
     */
    static Map<String, Manifest> parse(byte[] utf8) {
        Node node = new Node(Json.parse(utf8), "");
        Object version = node.find("format_version") == null
                ? null : node.get("format_version").value;
        if (!(version instanceof String) || !((String) version).matches("4\\.[0-9]{1,4}")) {
            throw new IllegalArgumentException("format version '" + version
                    + "'; this reader takes 4.x; build the package again: fourstep build RECIPE");
        }
        return Sizes.of(node);
    }

    /** The manifest of one size; raises IllegalArgumentException. */
    static Manifest of(Node node) {
        Manifest manifest = new Manifest(node);
        Consistent.check(manifest);
        return manifest;
    }

    /** The stage that gives the loop what it needs to go on, or null. */
    Stage giving(String result) {
        for (Stage stage : stages) {
            if (stage.results.containsValue(result)) {
                return stage;
            }
        }
        return null;
    }

    /** The turn of a graph, or null. */
    Stage stage(String graph) {
        for (Stage stage : stages) {
            if (stage.graph.equals(graph)) {
                return stage;
            }
        }
        return null;
    }

    private static void checkNoise(Node node) {
        if (node.find("algorithm") != null) {
            node.get("algorithm").oneOf("torch-cpu-randn");
        }
        if (node.find("seed_bits") != null) {
            node.get("seed_bits").whole(32, 32);
        }
        if (node.find("block") != null) {
            node.get("block").whole(Noise.BLOCK, Noise.BLOCK);
        }
    }

    private static String path(Node node, String key) {
        Node found = node.find(key);
        return found == null || "".equals(found.value) ? "" : found.matching(PATH);
    }

    private interface Make<T> {
        T of(Node node);
    }

    private static <T> List<T> list(Node node, Make<T> make) {
        List<T> found = new ArrayList<>();
        for (Node item : node.items()) {
            found.add(make.of(item));
        }
        return Collections.unmodifiableList(found);
    }

    private static <T> Map<String, T> map(Node node, Make<T> make) {
        Map<String, T> found = new LinkedHashMap<>();
        for (Map.Entry<String, Node> entry : node.entries().entrySet()) {
            found.put(entry.getKey(), make.of(entry.getValue()));
        }
        return Collections.unmodifiableMap(found);
    }

    /** How noise becomes a picture. */
    public static final class Schedule {
        /** {@code euler} or {@code renoise}. */
        public final String mode;
        public final List<Double> sigmas;
        /** Of guidance; 0: there is none. */
        public final float guidanceScale;
        /** The fixed negative prompt of guidance, or null: a request may name its own. */
        public final String negativePrompt;

        Schedule(Node node) {
            mode = node.get("mode").oneOf("euler", "renoise");
            sigmas = list(node.get("sigmas"), Node::number);
            Node guidance = node.find("guidance");
            double scale = guidance == null ? 0 : guidance.get("scale").number();
            if (guidance != null && !(scale > 1 && scale <= 100)) {
                throw guidance.get("scale").wrong(scale + " is not above 1 and at most 100");
            }
            guidanceScale = (float) scale;
            Node fixed = guidance == null ? null : guidance.find("negative_prompt");
            negativePrompt = fixed == null ? null : fixed.text();
            if (sigmas.size() < 2 || sigmas.size() > 1001) {
                throw node.get("sigmas").wrong("2 to 1001 numbers are expected");
            }
        }

        public int steps() {
            return sigmas.size() - 1;
        }

        boolean isGuided() {
            return guidanceScale != 0;
        }

        /** Whether a negative prompt has to be encoded. */
        boolean takesNegative() {
            return isGuided() && negativePrompt == null;
        }
    }

    /** What is drawn, and the latent that it is drawn in. */
    public static final class PictureEntry {
        public final int widthPx;
        public final int heightPx;
        public final int latentChannels;
        public final int latentScalePx;
        public final Pixels pixels;
        /** (channels, 3) and, last, the bias of each colour; or null. */
        final double[][] preview;
        final String previewGraph;

        PictureEntry(Node node) {
            widthPx = node.get("width_px").size(1 << 14);
            heightPx = node.get("height_px").size(1 << 14);
            latentChannels = node.get("latent_channels").size(4096);
            latentScalePx = node.get("latent_scale_px").size(256);
            pixels = new Pixels(node.find("pixels"));
            Node map = node.find("preview");
            preview = map == null ? null : factors(map);
            Node graph = node.find("preview_graph");
            previewGraph = graph == null ? "" : graph.text();
        }

        private static double[][] factors(Node map) {
            List<Node> rows = new ArrayList<>(map.get("factors").items());
            rows.add(map.get("bias"));
            double[][] found = new double[rows.size()][3];
            for (int i = 0; i < found.length; i++) {
                List<Node> row = rows.get(i).items();
                if (row.size() != 3) {
                    throw rows.get(i).wrong("three numbers are expected");
                }
                for (int k = 0; k < 3; k++) {
                    found[i][k] = row.get(k).number();
                }
            }
            return found;
        }

        /** (1, channels, height / scale, width / scale). */
        public int[] latent() {
            return new int[] {
                1, latentChannels, heightPx / latentScalePx, widthPx / latentScalePx
            };
        }

        /** How many values a latent has. */
        int latentValues() {
            return latentChannels * (heightPx / latentScalePx) * (widthPx / latentScalePx);
        }

        int[] image() {
            return new int[] {1, 3, heightPx, widthPx};
        }
    }

    /** How a prompt becomes ids (1, tokens). */
    public static final class TokenizerEntry {
        final String path;
        public final int tokens;
        final int padId;
        final int vocabularySize;

        TokenizerEntry(Node node) {
            path = node.get("path").matching(PATH);
            tokens = (int) node.get("tokens").whole(2, 1 << 16);
            padId = (int) node.get("pad_id").whole(0, MOST_INT);
            Node size = node.find("vocabulary_size");
            vocabularySize = size == null ? MOST_INT : size.size(MOST_INT);
            if (node.find("cut") != null) {
                node.get("cut").oneOf("keep closing");
            }
            Node closing = node.find("closing_id");
            if (padId >= vocabularySize || (closing != null
                    && closing.whole(0, MOST_INT) >= vocabularySize)) {
                throw node.wrong("pad_id or closing_id is not in the vocabulary of "
                        + vocabularySize);
            }
        }
    }

    /** Where an input of a graph comes from. */
    static final class Source {
        final String kind;
        final String name;
        final String port;
        final boolean rowOfStep;

        Source(Node node) {
            kind = node.get("kind").oneOf("tokens", "output", "negative output", "latent", "image");
            name = node.find("name") == null ? "" : node.get("name").text();
            port = node.find("port") == null ? "" : node.get("port").text();
            rowOfStep = node.find("row_of_step") != null && node.get("row_of_step").flag();
        }

        boolean isOutput() {
            return kind.endsWith("output");
        }
    }

    /** One graph's turn in the loop. */
    static final class Stage {
        static final String PER_PROMPT = "once per prompt";
        static final String TWICE = "twice each step";
        static final String FOR_PREVIEWS = "for previews";

        final String graph;
        final List<String> parts;
        final String runs;
        final Map<String, Source> inputs;
        final Map<String, Source> negativeInputs;
        final Map<String, String> results;
        final boolean imageToImageOnly;

        Stage(Node node) {
            graph = node.get("graph").matching(NAME);
            parts = list(node.get("parts"), part -> part.matching(NAME));
            runs = node.get("runs").oneOf(PER_PROMPT, "each step", TWICE, "once", FOR_PREVIEWS);
            inputs = map(node.get("inputs"), Source::new);
            negativeInputs = node.find("negative_inputs") == null
                    ? Collections.<String, Source>emptyMap()
                    : map(node.get("negative_inputs"), Source::new);
            results = node.find("results") == null
                    ? Collections.<String, String>emptyMap()
                    : map(node.get("results"),
                            result -> result.oneOf("velocity", "start", "image", "preview"));
            imageToImageOnly = node.find("image_to_image_only") != null
                    && node.get("image_to_image_only").flag();
        }

        boolean isInSteps() {
            return runs.equals("each step") || runs.equals(TWICE);
        }

        /** The output port that gives the loop this result. */
        String port(String result) {
            for (Map.Entry<String, String> entry : results.entrySet()) {
                if (entry.getValue().equals(result)) {
                    return entry.getKey();
                }
            }
            throw new IllegalStateException(graph + " gives no " + result);
        }

        List<Source> sources() {
            List<Source> all = new ArrayList<>(inputs.values());
            all.addAll(negativeInputs.values());
            return all;
        }
    }

    /** An input or output of a graph. */
    public static final class Port {
        public final String name;
        public final int[] shape;
        public final boolean isInt;

        Port(Node node) {
            name = node.get("name").text();
            List<Node> sizes = node.get("shape").items();
            shape = new int[sizes.size()];
            long bytes = 4;
            for (int i = 0; i < shape.length; i++) {
                shape[i] = sizes.get(i).size(MOST_INT);
                bytes *= shape[i];
                if (bytes > 1 << 30) {
                    throw node.get("shape").wrong("takes more than 1 GiB");
                }
            }
            isInt = node.find("dtype") != null
                    && node.get("dtype").oneOf("float32", "int32").equals("int32");
        }

        boolean takes(boolean ints, int... other) {
            return isInt == ints && Arrays.equals(shape, other);
        }
    }

    /** A graph of the package, or a part of one that is cut. */
    public static final class GraphEntry {
        public final String name;
        /** The file or folder that an engine opens. */
        public final String entry;
        public final Map<String, Port> inputs;
        public final Map<String, Port> outputs;
        public final List<FileEntry> files;
        /** What the backend wants to be told, in the project's words. */
        public final Map<String, String> session;
        final double graphRelative;
        final double imagePsnrDb;

        GraphEntry(Node node) {
            name = node.get("name").matching(NAME);
            entry = node.get("entry").matching(PATH);
            inputs = ports(node.get("inputs"));
            outputs = ports(node.get("outputs"));
            files = list(node.get("files"), FileEntry::new);
            session = node.find("session") == null
                    ? Collections.<String, String>emptyMap() : map(node.get("session"), Node::text);
            graphRelative = node.get("tolerance").get("graph_relative").number();
            imagePsnrDb = node.get("tolerance").get("image_psnr_db").number();
        }

        private static Map<String, Port> ports(Node node) {
            Map<String, Port> found = new LinkedHashMap<>();
            for (Port port : list(node, Port::new)) {
                if (found.put(port.name, port) != null) {
                    throw node.wrong("two of the name '" + port.name + "'");
                }
            }
            if (found.isEmpty()) {
                throw node.wrong("there are none");
            }
            return Collections.unmodifiableMap(found);
        }

    }

    /** A file of the package: its size and digest. */
    public static final class FileEntry {
        public final String path;
        public final long bytes;
        public final String sha256;

        FileEntry(Node node) {
            path = node.get("path").matching(PATH);
            bytes = node.get("bytes").whole(0, MOST);
            sha256 = node.get("sha256").matching(DIGEST);
        }
    }

    /** A golden picture. */
    public static final class Golden {
        public final String prompt;
        public final long seed;
        final String tensors;
        /** The first size's tensors of the same prompt and seed, of a further size, or empty. */
        final String like;
        /** Tensors that are the same as another one of the file. */
        final Map<String, String> same;

        Golden(Node node) {
            prompt = node.get("prompt").text();
            seed = node.get("seed").whole(0, Long.MAX_VALUE);
            tensors = node.get("tensors").matching(PATH);
            like = path(node, "like");
            same = node.find("same") == null
                    ? Collections.<String, String>emptyMap() : map(node.get("same"), Node::text);
        }
    }
}
