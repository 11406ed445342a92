package dev.fourstep;

import dev.fourstep.Event.Listener;
import dev.fourstep.Manifest.PictureEntry;
import dev.fourstep.Manifest.Schedule;
import dev.fourstep.Manifest.Source;
import dev.fourstep.Manifest.Stage;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.Callable;

/**
 * The loop: prompts to pictures in a fixed number of steps. It knows no graph by its name; which one
 * runs when, on what, is said by the manifest's stages.
 */
final class Drawing {
    private final Player player;
    private final Stop stop;
    private final Listener listener;
    private final Manifest manifest;
    private final Schedule schedule;
    private final PictureEntry picture;

    /** Where the inputs of a call are taken from. */
    private static final class Feed {
        String prompt = "";
        Map<String, Tensor> values; // what graphs gave for the prompt, by "graph/port"
        Map<String, Tensor> negative; // and for the negative prompt
        Tensor latent;
        Tensor image;
        int step;
    }

    Drawing(Player player, Stop stop, Listener listener) {
        this.player = player;
        this.stop = stop;
        this.listener = listener;
        this.manifest = player.manifest;
        this.schedule = manifest.schedule;
        this.picture = manifest.picture;
    }

    void draw(List<Request> requests) {
        int[] starts = new int[requests.size()];
        for (int i = 0; i < starts.length; i++) {
            starts[i] = check(requests.get(i));
        }
        Map<String, Map<String, Tensor>> values = condition(texts(requests));
        listener.on(new Event.Conditioned(values.size()));
        Map<Levels, Tensor> encoded = encode(requests);
        List<Tensor> latents = walk(requests, starts, values, encoded);
        decode(requests, values, latents);
    }

    /** The step at which a request enters the schedule; RequestException for what is no request. */
    private int check(Request request) {
        Tokenizer.check(request.prompt, "prompt");
        checkNegative(request.negative);
        int first = Steps.first(schedule, request.strength);
        if (request.image == null) {
            if (request.strength != 1) {
                throw new RequestException("strength",
                        "applies only with a picture to start from (image)");
            }
            return 0;
        }
        if (manifest.giving("start") == null) {
            throw new RequestException("image", "this package has no graph to start from a picture "
                    + "with; build with image_to_image = true in [image]");
        }
        Levels image = request.image;
        if (image.widthPx != picture.widthPx || image.heightPx != picture.heightPx) {
            throw new RequestException("image", "is " + image.widthPx + " x " + image.heightPx
                    + " px; scale or cut it to " + picture.widthPx + " x " + picture.heightPx);
        }
        return first;
    }

    private void checkNegative(String negative) {
        if (negative == null) {
            return;
        }
        if (!schedule.isGuided()) {
            throw new RequestException("negative", "this package draws without guidance, and nothing "
                    + "else uses a negative prompt; build with guidance above 1 in [schedule] of a "
                    + "recipe");
        }
        if (!schedule.takesNegative()) {
            throw new RequestException("negative", "the negative prompt of this package is fixed: "
                    + Text.quoted(schedule.negativePrompt) + "; build without negative_prompt in "
                    + "[schedule] of a recipe to give others");
        }
        Tokenizer.check(negative, "negative");
    }

    private String negativeOf(Request request) {
        return request.negative == null ? "" : request.negative;
    }

    /** What has to be encoded, each once: all prompts, then all negative prompts. */
    private Set<String> texts(List<Request> requests) {
        Set<String> found = new LinkedHashSet<>();
        for (Request request : requests) {
            found.add(request.prompt);
        }
        for (Request request : requests) {
            if (schedule.takesNegative()) {
                found.add(negativeOf(request));
            }
        }
        return found;
    }

    /** What the stages of once per prompt give for each text, as far as it is used later. */
    private Map<String, Map<String, Tensor>> condition(Set<String> texts) {
        Map<String, Map<String, Tensor>> found = new LinkedHashMap<>();
        for (String text : texts) {
            found.put(text, new LinkedHashMap<>());
        }
        for (Stage stage : manifest.stages) {
            if (!stage.runs.equals(Stage.PER_PROMPT)) {
                continue;
            }
            List<Map<String, Tensor>> calls = new ArrayList<>();
            List<String> ends = new ArrayList<>();
            for (String text : texts) {
                Feed feed = new Feed();
                feed.prompt = text;
                feed.values = found.get(text);
                calls.add(inputs(stage.inputs, feed));
                ends.add("prompt " + Text.quoted(text));
            }
            List<Map<String, Tensor>> outputs = run(stage.parts, calls, ends);
            Set<String> used = usedAfter(stage);
            int call = 0;
            for (Map<String, Tensor> values : found.values()) {
                for (Map.Entry<String, Tensor> entry : outputs.get(call++).entrySet()) {
                    values.put(stage.graph + "/" + entry.getKey(), entry.getValue());
                }
                values.keySet().retainAll(used);
            }
        }
        return found;
    }

    /** The outputs that stages after this one take. */
    private Set<String> usedAfter(Stage stage) {
        Set<String> found = new HashSet<>();
        int next = manifest.stages.indexOf(stage) + 1;
        for (Stage later : manifest.stages.subList(next, manifest.stages.size())) {
            for (Source source : later.sources()) {
                if (source.isOutput()) {
                    found.add(source.name + "/" + source.port);
                }
            }
        }
        return found;
    }

    private Map<String, Tensor> inputs(Map<String, Source> sources, Feed feed) {
        Map<String, Tensor> found = new LinkedHashMap<>();
        for (Map.Entry<String, Source> entry : sources.entrySet()) {
            found.put(entry.getKey(), value(entry.getValue(), feed));
        }
        return found;
    }

    private Tensor value(Source source, Feed feed) {
        if (source.isOutput()) {
            Map<String, Tensor> values = source.kind.equals("output") ? feed.values : feed.negative;
            Tensor value = values.get(source.name + "/" + source.port);
            return source.rowOfStep ? value.row(feed.step) : value;
        }
        switch (source.kind) {
            case "tokens":
                return tokens(source.name, feed.prompt);
            case "latent":
                return feed.latent;
            default:
                return feed.image;
        }
    }

    private Tensor tokens(String name, String prompt) {
        int most = manifest.tokenizers.get(name).tokens;
        int count = player.tokenizers.get(name).ids(prompt).length;
        if (count > most) {
            listener.on(new Event.Remark(name + " reads " + most + " tokens; the prompt "
                    + Text.quoted(prompt) + " has " + count + ", and its end is not read"));
        }
        return Tensor.of(player.tokenizers.get(name).encode(prompt), 1, most);
    }

    /** A graph's outputs for several inputs; each of its parts is opened once, in turn. */
    private List<Map<String, Tensor>> run(
            List<String> parts, List<Map<String, Tensor>> calls, List<String> ends) {
        for (String part : parts) {
            List<Map<String, Tensor>> found = new ArrayList<>();
            for (int i = 0; i < calls.size(); i++) {
                found.add(player.run(part, calls.get(i), ends.get(i), stop));
            }
            player.release(part);
            calls = found;
        }
        return calls;
    }

    /** The latents that requests start from; each picture is encoded once. */
    private Map<Levels, Tensor> encode(List<Request> requests) {
        Map<Levels, Tensor> found = new IdentityHashMap<>();
        Stage stage = manifest.giving("start");
        List<Levels> images = new ArrayList<>();
        List<Map<String, Tensor>> calls = new ArrayList<>();
        List<String> ends = new ArrayList<>();
        for (Request request : requests) {
            if (request.image == null || found.containsKey(request.image)) {
                continue;
            }
            found.put(request.image, null);
            images.add(request.image);
            Feed feed = new Feed();
            feed.image = picture.pixels.fromLevels(request.image);
            calls.add(inputs(stage.inputs, feed));
            ends.add("picture " + images.size());
        }
        if (images.isEmpty()) {
            return found;
        }
        List<Map<String, Tensor>> outputs = run(stage.parts, calls, ends);
        for (int i = 0; i < images.size(); i++) {
            found.put(images.get(i), outputs.get(i).get(stage.port("start")));
        }
        return found;
    }

    /** All steps of all pictures; their final latents. */
    private List<Tensor> walk(List<Request> requests, int[] starts,
            Map<String, Map<String, Tensor>> values, Map<Levels, Tensor> encoded) {
        Stage stage = manifest.giving("velocity");
        Previews previews = new Previews();
        List<Tensor> latents = new ArrayList<>();
        int count = picture.latentValues();
        for (int index = 0; index < starts.length; index++) {
            Request request = requests.get(index);
            Noise noise = new Noise(request.seed);
            float[] latent = noise.draw(count);
            if (request.image != null) {
                latent = Steps.begin(
                        schedule, starts[index], encoded.get(request.image).floats, latent);
            }
            Feed feed = new Feed();
            feed.prompt = request.prompt;
            feed.values = values.get(request.prompt);
            feed.negative = schedule.takesNegative() ? values.get(negativeOf(request)) : null;
            for (feed.step = starts[index]; feed.step < schedule.steps(); feed.step++) {
                feed.latent = Tensor.of(latent, picture.latent());
                float[] velocity = velocity(stage, feed);
                float[] fresh = Steps.takesNoise(schedule) ? noise.draw(count) : null;
                latent = Steps.advance(schedule, feed.step, latent, velocity, fresh);
                if (!Tensor.isFinite(latent)) {
                    throw new PackageException(stage.graph + ", " + at(feed)
                            + ": the latent after it " + Pixels.NOT_FINITE);
                }
                listener.on(step(index, feed.step + 1, latent, previews));
            }
            latents.add(Tensor.of(latent, picture.latent()));
        }
        previews.release();
        for (String part : stage.parts) {
            player.release(part);
        }
        return latents;
    }

    private String at(Feed feed) {
        return "step " + (feed.step + 1) + " of " + schedule.steps();
    }

    /** What the stage of each step gives for one step: with guidance, of both its calls. */
    private float[] velocity(Stage stage, Feed feed) {
        List<Map<String, Tensor>> calls = new ArrayList<>();
        calls.add(inputs(stage.inputs, feed));
        if (schedule.isGuided()) {
            calls.add(inputs(stage.negativeInputs, feed));
        }
        for (String part : stage.parts) {
            List<Map<String, Tensor>> found = new ArrayList<>();
            for (Map<String, Tensor> call : calls) {
                String end = at(feed) + (found.isEmpty() ? "" : ", negative prompt");
                found.add(player.run(part, call, end, stop));
            }
            if (stage.parts.size() > 1) {
                player.release(part); // memory holds one part at a time
            }
            calls = found;
        }
        String port = stage.port("velocity");
        float[] velocity = calls.get(0).get(port).floats;
        return calls.size() == 1 ? velocity
                : Steps.guided(schedule.guidanceScale, velocity, calls.get(1).get(port).floats);
    }

    private Event.Step step(int index, int step, float[] values, Previews previews) {
        Tensor latent = Tensor.of(values, picture.latent());
        String end = "preview of step " + step + " of " + schedule.steps();
        Callable<Levels> show = null;
        if (!picture.previewGraph.isEmpty()) {
            show = () -> previews.show(latent, end);
        } else if (picture.preview != null) {
            show = () -> picture.pixels.preview(latent, picture.preview);
        }
        return new Event.Step(index, step, schedule.steps(), schedule.sigmas.get(step), latent, show);
    }

    /** Previews by a graph of the package, opened for the first and kept until they are over. */
    private final class Previews {
        private final Stage stage = manifest.stage(picture.previewGraph);
        private boolean isOver;

        Levels show(Tensor latent, String end) {
            synchronized (player) {
                Map<String, Tensor> values = new LinkedHashMap<>();
                for (String port : stage.inputs.keySet()) {
                    values.put(port, latent);
                }
                for (String part : stage.parts) {
                    values = player.run(part, values, end, stop);
                }
                Tensor image = values.get(stage.results.keySet().iterator().next());
                if (isOver) {
                    release();
                }
                return picture.pixels.toLevels(
                        image.floats, picture.heightPx, picture.widthPx, stage.graph);
            }
        }

        void release() {
            isOver = true;
            for (String part : stage == null ? new ArrayList<String>() : stage.parts) {
                player.release(part);
            }
        }
    }

    private void decode(List<Request> requests, Map<String, Map<String, Tensor>> values,
            List<Tensor> latents) {
        Stage stage = manifest.giving("image");
        List<Map<String, Tensor>> calls = new ArrayList<>();
        List<String> ends = new ArrayList<>();
        for (int i = 0; i < latents.size(); i++) {
            Feed feed = new Feed();
            feed.prompt = requests.get(i).prompt;
            feed.values = values.get(feed.prompt);
            feed.latent = latents.get(i);
            calls.add(inputs(stage.inputs, feed));
            ends.add("picture " + (i + 1));
        }
        int others = stage.parts.size() - 1;
        String last = stage.parts.get(others);
        calls = run(stage.parts.subList(0, others), calls, ends);
        for (int i = 0; i < calls.size(); i++) { // each is told as soon as it is done
            Map<String, Tensor> outputs = player.run(last, calls.get(i), ends.get(i), stop);
            float[] image = outputs.get(stage.port("image")).floats;
            Levels pixels = picture.pixels.toLevels(
                    image, picture.heightPx, picture.widthPx, stage.graph);
            listener.on(new Event.Picture(i, requests.get(i), pixels, latents.get(i)));
        }
        player.release(last);
    }
}
