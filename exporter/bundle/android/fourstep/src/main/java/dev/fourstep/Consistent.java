package dev.fourstep;

import dev.fourstep.Manifest.FileEntry;
import dev.fourstep.Manifest.GraphEntry;
import dev.fourstep.Manifest.Golden;
import dev.fourstep.Manifest.PictureEntry;
import dev.fourstep.Manifest.Port;
import dev.fourstep.Manifest.Source;
import dev.fourstep.Manifest.Stage;
import dev.fourstep.Manifest.TokenizerEntry;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** A manifest's fields against each other: what a record's own types cannot say. */
final class Consistent {
    private final Manifest manifest;
    private final Map<String, Stage> given = new LinkedHashMap<>();

    private Consistent(Manifest manifest) {
        this.manifest = manifest;
    }

    /** Raise IllegalArgumentException that names the field which contradicts the others. */
    static void check(Manifest manifest) {
        Consistent all = new Consistent(manifest);
        all.schedule();
        all.picture();
        all.files();
        all.parts();
        for (int i = 0; i < manifest.stages.size(); i++) {
            all.stage(manifest.stages.get(i), "stages[" + i + "]");
        }
        all.results();
        all.previewGraph();
    }

    private static void need(boolean holds, String problem) {
        if (!holds) {
            throw new IllegalArgumentException(problem);
        }
    }

    private void schedule() {
        List<Double> sigmas = manifest.schedule.sigmas;
        boolean falls = sigmas.get(0) <= 1 && sigmas.get(sigmas.size() - 1) == 0;
        for (int i = 1; i < sigmas.size(); i++) {
            falls &= sigmas.get(i) < sigmas.get(i - 1);
        }
        need(falls, "schedule.sigmas: " + sigmas + " do not fall from at most 1 to 0");
        boolean negative = false;
        for (Stage stage : manifest.stages) {
            String runs = manifest.schedule.isGuided() ? Stage.TWICE : "each step";
            need(!stage.isInSteps() || stage.runs.equals(runs),
                    "stages: '" + stage.runs + "' does not go with schedule.guidance");
            for (Source source : stage.sources()) {
                negative |= source.kind.equals("negative output");
            }
        }
        need(negative == manifest.schedule.takesNegative(),
                "schedule.guidance.negative_prompt: does not go with the sources of the stages");
    }

    private void picture() {
        PictureEntry picture = manifest.picture;
        int scale = picture.latentScalePx;
        need(picture.widthPx % scale == 0 && picture.heightPx % scale == 0,
                "picture: " + picture.widthPx + " x " + picture.heightPx + " is no multiple of "
                        + scale);
        need(picture.preview == null || picture.preview.length == picture.latentChannels + 1,
                "picture.preview.factors: not a row for each of the channels");
    }

    /** Every path is among the digests, and none of them twice. */
    private void files() {
        Set<String> seen = new HashSet<>();
        List<FileEntry> all = new ArrayList<>(manifest.files.values());
        for (GraphEntry graph : manifest.graphs.values()) {
            all.addAll(graph.files);
            boolean has = false;
            for (FileEntry file : graph.files) {
                has |= file.path.equals(graph.entry) || file.path.startsWith(graph.entry + "/");
            }
            need(has, "graphs: '" + graph.entry + "' is not among the files of " + graph.name);
        }
        for (FileEntry file : all) {
            need(seen.add(file.path), "files: '" + file.path + "' is listed twice");
        }
        List<String> named = new ArrayList<>();
        for (TokenizerEntry tokenizer : manifest.tokenizers.values()) {
            named.add(tokenizer.path);
        }
        for (Golden golden : manifest.golden) {
            named.addAll(Arrays.asList(golden.tensors, golden.like));
        }
        named.addAll(Arrays.asList(manifest.goldenTokens, manifest.goldenNoise));
        for (String path : named) {
            need(path.isEmpty() || manifest.files.containsKey(path),
                    "files: '" + path + "' is not among them");
        }
    }

    private void parts() {
        List<String> used = new ArrayList<>();
        for (Stage stage : manifest.stages) {
            used.addAll(stage.parts);
        }
        need(used.size() == manifest.graphs.size()
                        && manifest.graphs.keySet().equals(new HashSet<>(used)),
                "stages: their parts " + used + " are not the graphs " + manifest.graphs.keySet()
                        + ", each once");
    }

    private void stage(Stage stage, String where) {
        need(!given.containsKey(stage.graph), where + ".graph: has a turn already");
        need(!stage.parts.isEmpty(), where + ".parts: there are none");
        for (int i = 1; i < stage.parts.size(); i++) {
            need(sameKinds(outputs(stage.parts.get(i - 1)), graph(stage.parts.get(i)).inputs),
                    where + ".parts: " + stage.parts.get(i) + " does not take what the one before "
                            + "it gives");
        }
        Map<String, Port> ports = graph(stage.parts.get(0)).inputs;
        boolean twice = stage.runs.equals(Stage.TWICE);
        need(twice || stage.negativeInputs.isEmpty(),
                where + ".negative_inputs: there are some, and it runs " + stage.runs);
        sources(stage, stage.inputs, ports, where + ".inputs");
        if (twice) {
            sources(stage, stage.negativeInputs, ports, where + ".negative_inputs");
        }
        results(stage, where);
        given.put(stage.graph, stage);
    }

    private void sources(
            Stage stage, Map<String, Source> sources, Map<String, Port> ports, String where) {
        need(sources.keySet().equals(ports.keySet()), where + ": " + sources.keySet()
                + " are not those of the graph, " + ports.keySet());
        for (Port port : ports.values()) {
            source(stage, sources.get(port.name), port, where + "." + port.name);
        }
    }

    /** What an input is fed from is there in its turn, and has the shape that it takes. */
    private void source(Stage stage, Source source, Port port, String where) {
        PictureEntry picture = manifest.picture;
        boolean fits;
        if (source.kind.equals("tokens")) {
            TokenizerEntry entry = manifest.tokenizers.get(source.name);
            need(entry != null && stage.runs.equals(Stage.PER_PROMPT),
                    where + ": no tokenizer '" + source.name + "' for what runs " + stage.runs);
            fits = port.takes(true, 1, entry.tokens);
        } else if (source.kind.equals("latent")) {
            need(!stage.runs.equals(Stage.PER_PROMPT), where + ": there is no latent yet");
            fits = port.takes(false, picture.latent());
        } else if (source.kind.equals("image")) {
            need(stage.imageToImageOnly && stage.runs.equals("once"),
                    where + ": only a stage of image to image that runs once has an image");
            fits = port.takes(false, picture.image());
        } else {
            Port output = output(stage, source, where);
            int[] shape = output.shape.clone();
            if (source.rowOfStep) {
                need(stage.isInSteps() && shape.length > 0
                        && shape[0] == manifest.schedule.steps(),
                        where + ": " + Arrays.toString(shape) + " has no row for each step");
                shape[0] = 1;
            }
            fits = port.takes(output.isInt, shape);
        }
        need(fits, where + ": takes another shape or type than it gets from " + source.kind);
    }

    private Port output(Stage stage, Source source, String where) {
        need(source.kind.equals("output") || stage.runs.equals(Stage.TWICE),
                where + ": only what runs twice each step takes something of the negative prompt");
        Stage before = given.get(source.name);
        Port found = before == null ? null : outputs(last(before)).get(source.port);
        need(found != null, where + ": no output '" + source.port + "' of a graph '" + source.name
                + "' before it");
        need(before.runs.equals(Stage.PER_PROMPT), where + ": '" + source.name + "' runs "
                + before.runs + "; outputs of once per prompt alone are kept");
        return found;
    }

    private void results(Stage stage, String where) {
        need(stage.runs.equals(Stage.PER_PROMPT) || stage.results.size() == 1,
                where + ".results: what runs '" + stage.runs + "' gives the loop one");
        for (Map.Entry<String, String> entry : stage.results.entrySet()) {
            String result = entry.getValue();
            boolean latent = result.equals("velocity") || result.equals("start");
            int[] shape = latent ? manifest.picture.latent() : manifest.picture.image();
            Port port = outputs(last(stage)).get(entry.getKey());
            need(port != null && port.takes(false, shape),
                    where + ".results." + entry.getKey() + ": no output of the shape of the "
                            + result);
            need(result.equals("velocity") == stage.isInSteps()
                            && result.equals("preview") == stage.runs.equals(Stage.FOR_PREVIEWS)
                            && result.equals("start") == stage.imageToImageOnly,
                    where + ".runs: '" + stage.runs + "' does not give the " + result);
        }
    }

    private void results() {
        for (String result : new String[] {"velocity", "image", "start", "preview"}) {
            int found = 0;
            for (Stage stage : manifest.stages) {
                found += stage.results.containsValue(result) ? 1 : 0;
            }
            boolean has = found == 1 || (found == 0
                    && (result.equals("start") || result.equals("preview")));
            need(has, "stages: " + found + " of them give the " + result + "; one has to");
        }
    }

    private void previewGraph() {
        String name = manifest.picture.previewGraph;
        need(name.isEmpty() || manifest.stage(name) != null,
                "picture.preview_graph: there is no stage of '" + name + "'");
        for (Stage stage : manifest.stages) {
            boolean shows = stage.results.containsValue("preview");
            boolean named = stage.graph.equals(name);
            need(!shows || named, "picture.preview_graph: '" + stage.graph + "' gives the preview");
            need(!named || shows || stage.results.containsValue("image"),
                    "picture.preview_graph: '" + name + "' gives no picture");
            for (Source source : stage.sources()) {
                need(!named || source.kind.equals("latent"),
                        "picture.preview_graph: '" + name + "' takes more than a latent");
            }
        }
    }

    private static boolean sameKinds(Map<String, Port> gives, Map<String, Port> takes) {
        boolean same = gives.keySet().equals(takes.keySet());
        for (Port port : gives.values()) {
            Port other = takes.get(port.name);
            same = same && other.takes(port.isInt, port.shape);
        }
        return same;
    }

    private GraphEntry graph(String name) {
        return manifest.graphs.get(name);
    }

    private Map<String, Port> outputs(String part) {
        return graph(part).outputs;
    }

    private static String last(Stage stage) {
        return stage.parts.get(stage.parts.size() - 1);
    }
}
