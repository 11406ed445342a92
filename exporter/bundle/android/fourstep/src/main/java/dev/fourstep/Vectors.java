package dev.fourstep;

import dev.fourstep.Manifest.Golden;
import dev.fourstep.Manifest.GraphEntry;
import dev.fourstep.Manifest.Port;
import dev.fourstep.Manifest.Schedule;
import dev.fourstep.Manifest.Source;
import dev.fourstep.Manifest.Stage;
import java.io.File;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The conformance vectors of a package: what this runtime has to reproduce, with graphs or without.
 *
 * <p>{@code java dev.fourstep.Vectors PACKAGE...} compares all that need no engine, of every size.
 */
public final class Vectors {
    private static final int LONGEST_ROW = 40; // draws of 1 to so many values in a row
    private static final int PREVIEW_LEVELS = 1; // sums may be in another order

    private final Package source;
    private final Manifest manifest;
    private final Map<String, Tokenizer> tokenizers;
    private final List<String> failures = new ArrayList<>();
    private int count;

    private Vectors(Package source) {
        this.source = source;
        this.manifest = source.manifest;
        this.tokenizers = source.tokenizers();
    }

    /** What was compared, and what differs: a line each. */
    public static final class Report {
        public final int compared;
        public final List<String> failures;

        Report(int compared, List<String> failures) {
            this.compared = compared;
            this.failures = failures;
        }
    }

    /** Ids, noise, steps, pixels and previews: no graph is opened. */
    public static Report compare(Package source) {
        Vectors all = new Vectors(source);
        if (source.manifest.golden.isEmpty()) {
            throw new PackageException("the package has no golden vectors to compare with; bundle it "
                    + "without --without-golden");
        }
        all.tokens();
        all.noise();
        for (Golden golden : source.manifest.golden) {
            all.picture(golden, all.tensors(golden));
        }
        return new Report(all.count, all.failures);
    }

    /**
     * Every graph's recorded calls, and the golden pictures from their prompts.
     *
     * @param engine one that rounds nothing of its own accord: tolerances are those of exact runs
     */
    public static Report compare(Package source, Engine engine) {
        Vectors all = new Vectors(source);
        try (Player player = source.player(engine, false)) {
            for (Golden golden : source.manifest.golden) {
                Safetensors tensors = all.tensors(golden);
                for (Stage stage : source.manifest.stages) {
                    all.graph(player, stage, tensors);
                }
                all.whole(player, golden, tensors);
            }
        }
        return new Report(all.count, all.failures);
    }

    /** Compare packages; exits with 1 if anything differs, 2 for what is no package. */
    public static void main(String[] folders) {
        int status = folders.length == 0 ? 2 : 0;
        if (folders.length == 0) {
            System.err.println("usage: java dev.fourstep.Vectors PACKAGE...");
        }
        for (String folder : folders) {
            try {
                Package whole = Package.open(new File(folder));
                int compared = 0;
                int differing = 0;
                for (String size : whole.sizes()) {
                    Report report = compare(whole.at(size));
                    for (String failure : report.failures) {
                        System.out.println(folder + ": " + size + ": " + failure);
                    }
                    compared += report.compared;
                    differing += report.failures.size();
                }
                System.out.println(folder + ": " + (compared - differing) + " of " + compared
                        + " vectors are the same");
                status = Math.max(status, differing == 0 ? 0 : 1);
            } catch (FourstepException error) {
                System.err.println(error.getMessage());
                status = 2;
            }
        }
        System.exit(status);
    }

    private void add(boolean same, String what) {
        count++;
        if (!same) {
            failures.add(what);
        }
    }

    /** All that is recorded of a picture: of a further size, less of it is in its own file. */
    private Safetensors tensors(Golden golden) {
        Safetensors own = tensors(golden.tensors);
        return golden.like.isEmpty() ? own : own.with(golden.same, tensors(golden.like));
    }

    private Safetensors tensors(String path) {
        try {
            return new Safetensors(source.read(path));
        } catch (IllegalArgumentException error) {
            throw new PackageException(path + ": " + error.getMessage()
                    + "; build the package again", error);
        }
    }

    private void tokens() {
        if (manifest.goldenTokens.isEmpty()) {
            return;
        }
        Node file = new Node(Json.parse(source.read(manifest.goldenTokens)), "");
        List<Node> prompts = file.get("prompts").items();
        for (Map.Entry<String, Tokenizer> entry : tokenizers.entrySet()) {
            List<Node> rows = file.get("ids").get(entry.getKey()).items();
            int pad = manifest.tokenizers.get(entry.getKey()).padId;
            for (int i = 0; i < prompts.size(); i++) {
                int[] expected = new int[rows.get(i).items().size()];
                for (int k = 0; k < expected.length; k++) {
                    expected[k] = (int) rows.get(i).items().get(k).whole(0, Integer.MAX_VALUE);
                }
                int[] found = entry.getValue().encode(prompts.get(i).text());
                int end = found.length;
                while (end > 0 && found[end - 1] == pad) {
                    end--;
                }
                add(Arrays.equals(Arrays.copyOf(found, end), expected), "ids of " + entry.getKey()
                        + " differ for " + Text.quoted(prompts.get(i).text()));
            }
        }
    }

    private void noise() {
        if (manifest.goldenNoise.isEmpty()) {
            return;
        }
        Safetensors tensors = tensors(manifest.goldenNoise);
        for (String name : tensors.names()) {
            String[] parts = name.split("/", 2);
            if (parts.length != 2 || !parts[0].matches("[0-9]{1,19}")) {
                continue; // of a later format
            }
            float[] expected = tensors.floats(name);
            Noise noise = new Noise(Long.parseLong(parts[0]));
            float[] found = parts[1].equals("in a row")
                    ? inARow(noise) : noise.draw(expected.length);
            add(sameNoise(found, expected), "noise of seed " + parts[0] + ", " + parts[1]
                    + ": differs");
        }
    }

    private static float[] inARow(Noise noise) {
        float[] found = new float[LONGEST_ROW * (LONGEST_ROW + 1) / 2];
        for (int size = 1, at = 0; size <= LONGEST_ROW; at += size, size++) {
            System.arraycopy(noise.draw(size), 0, found, at, size);
        }
        return found;
    }

    /** The same but for one unit in the last place: a machine's logarithm and cosine may differ. */
    private static boolean sameNoise(float[] found, float[] expected) {
        boolean same = found.length == expected.length;
        for (int i = 0; same && i < found.length; i++) {
            same = Math.abs(found[i] - expected[i]) <= Math.ulp(expected[i]);
        }
        return same;
    }

    private void picture(Golden golden, Safetensors tensors) {
        String where = "picture " + Text.quoted(golden.prompt) + ": ";
        Schedule schedule = manifest.schedule;
        Set<String> texts = new LinkedHashSet<>(Arrays.asList(golden.prompt));
        if (schedule.takesNegative()) {
            texts.add("");
        }
        for (Stage stage : manifest.stages) {
            for (Map.Entry<String, Source> entry : stage.inputs.entrySet()) {
                int call = 0;
                for (String text : entry.getValue().kind.equals("tokens")
                        ? texts : new LinkedHashSet<String>()) {
                    String name = entry.getValue().name;
                    int[] expected =
                            tensors.ints(stage.graph + "/" + call++ + "/in/" + entry.getKey());
                    add(Arrays.equals(tokenizers.get(name).encode(text), expected),
                            where + "ids of " + name + " differ");
                }
            }
        }
        Noise noise = new Noise(golden.seed);
        int draws = 1 + (Steps.takesNoise(schedule) ? schedule.steps() : 0);
        for (int k = 0; k < draws; k++) {
            float[] found = noise.draw(manifest.picture.latentValues());
            add(sameNoise(found, tensors.floats("noise/" + k)), where + "noise " + k + " differs");
        }
        steps(tensors, where);
        Stage decoder = manifest.giving("image");
        float[] image = tensors.floats(decoder.graph + "/0/out/" + decoder.port("image"));
        Levels shown = manifest.picture.pixels.toLevels(
                image, manifest.picture.heightPx, manifest.picture.widthPx, decoder.graph);
        add(Arrays.equals(shown.rgb, tensors.bytes("pixels")), where + "pixels differ");
    }

    /** Each step from the latent before it and the recorded velocity. */
    private void steps(Safetensors tensors, String where) {
        Schedule schedule = manifest.schedule;
        float[] latent = tensors.floats("noise/0");
        for (int step = 0; step < schedule.steps(); step++) {
            float[] fresh = Steps.takesNoise(schedule) ? tensors.floats("noise/" + (step + 1)) : null;
            float[] found = Steps.advance(schedule, step, latent, velocity(tensors, step), fresh);
            latent = tensors.floats("latent/" + (step + 1));
            add(Arrays.equals(found, latent), where + "step " + (step + 1) + " differs");
            String name = "preview/" + (step + 1);
            if (manifest.picture.preview != null && tensors.has(name)) {
                Tensor value = Tensor.of(latent, manifest.picture.latent());
                Levels shown = manifest.picture.pixels.preview(value, manifest.picture.preview);
                add(near(shown.rgb, tensors.bytes(name)), where + name + " differs");
            }
        }
    }

    private float[] velocity(Safetensors tensors, int step) {
        Stage stage = manifest.giving("velocity");
        String port = "/out/" + stage.port("velocity");
        if (!manifest.schedule.isGuided()) {
            return tensors.floats(stage.graph + "/" + step + port);
        }
        return Steps.guided(manifest.schedule.guidanceScale,
                tensors.floats(stage.graph + "/" + 2 * step + port),
                tensors.floats(stage.graph + "/" + (2 * step + 1) + port));
    }

    private static boolean near(byte[] found, byte[] expected) {
        boolean near = found.length == expected.length;
        for (int i = 0; near && i < found.length; i++) {
            near = Math.abs((found[i] & 0xFF) - (expected[i] & 0xFF)) <= PREVIEW_LEVELS;
        }
        return near;
    }

    /** The recorded calls of a graph: relative L2 error of each output within its tolerance. */
    private void graph(Player player, Stage stage, Safetensors tensors) {
        GraphEntry first = manifest.graphs.get(stage.parts.get(0));
        GraphEntry last = manifest.graphs.get(stage.parts.get(stage.parts.size() - 1));
        List<Map<String, Tensor>> calls = new ArrayList<>();
        for (String name = stage.graph + "/0/in/"; isRecorded(tensors, name, first);
                name = stage.graph + "/" + calls.size() + "/in/") {
            Map<String, Tensor> inputs = new LinkedHashMap<>();
            for (String port : first.inputs.keySet()) {
                inputs.put(port, tensors.tensor(name + port));
            }
            calls.add(inputs);
        }
        for (String part : stage.parts) { // each is opened once for all calls
            for (int call = 0; call < calls.size(); call++) {
                String end = "golden call " + call;
                calls.set(call, player.run(part, calls.get(call), end, new Stop()));
            }
            player.release(part);
        }
        for (int call = 0; call < calls.size(); call++) {
            for (Port port : last.outputs.values()) {
                float[] expected = tensors.floats(stage.graph + "/" + call + "/out/" + port.name);
                double error = relativeError(calls.get(call).get(port.name).floats, expected);
                add(error <= last.graphRelative, stage.graph + ", call " + call
                        + ": relative error " + error + ", allowed " + last.graphRelative);
            }
        }
    }

    private static boolean isRecorded(Safetensors tensors, String prefix, GraphEntry first) {
        return tensors.has(prefix + first.inputs.keySet().iterator().next());
    }

    private static double relativeError(float[] found, float[] expected) {
        double apart = 0;
        double whole = 0;
        for (int i = 0; i < expected.length; i++) {
            double difference = (double) found[i] - expected[i];
            apart += difference * difference;
            whole += (double) expected[i] * expected[i];
        }
        return Math.sqrt(apart / Math.max(whole, Double.MIN_NORMAL));
    }

    private void whole(Player player, Golden golden, Safetensors tensors) {
        Levels drawn = player.draw(Request.of(golden.prompt).withSeed(golden.seed));
        byte[] expected = tensors.bytes("pixels");
        double squares = 0;
        for (int i = 0; i < expected.length; i++) {
            double apart = (drawn.rgb[i] & 0xFF) - (expected[i] & 0xFF);
            squares += apart * apart;
        }
        double psnrDb = 10 * Math.log10(255.0 * 255.0 * expected.length / squares);
        double leastDb = Double.MAX_VALUE;
        for (GraphEntry graph : manifest.graphs.values()) {
            leastDb = Math.min(leastDb, graph.imagePsnrDb);
        }
        add(psnrDb >= leastDb, "picture " + Text.quoted(golden.prompt) + ": PSNR " + psnrDb
                + " dB, at least " + leastDb);
    }
}
