package dev.fourstep;

import java.io.File;
import java.io.FileOutputStream;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CancellationException;

/**
 * For tests: draws what its arguments say and prints a line for each event.
 *
 * <p>{@code ENGINE OUT [keep] [stop N] [preview] [size WxH] PACKAGE BACKEND [prompt TEXT] [seed N] [negative
 * TEXT] [image FILE WIDTH HEIGHT STRENGTH]...}: the engine is one that {@link Counted#of} knows; a
 * package may be several folders; each {@code prompt} begins a request; pixels go to OUT/N.rgb,
 * previews to OUT/N-STEP.rgb, latents to OUT/N-STEP.latent.
 */
final class Draw {
    public static void main(String[] words) throws Exception {
        List<Request> requests = new ArrayList<>();
        boolean keep = false;
        boolean previews = false;
        int stopAt = 0;
        String size = null;
        File out = new File(words[1]);
        int at = 2;
        for (; words[at].matches("keep|preview|stop|size"); at++) {
            keep |= words[at].equals("keep");
            previews |= words[at].equals("preview");
            size = words[at].equals("size") ? words[++at] : size;
            stopAt = words[at].equals("stop") ? Integer.parseInt(words[++at]) : stopAt;
        }
        String folder = words[at++];
        Counted engine = Counted.of(words[0], words[at++]);
        try {
            for (; at < words.length; at++) {
                int last = requests.size() - 1;
                switch (words[at]) {
                    case "prompt":
                        requests.add(Request.of(words[++at]));
                        break;
                    case "seed":
                        requests.set(last, requests.get(last).withSeed(words[++at]));
                        break;
                    case "negative":
                        requests.set(last, requests.get(last).withNegative(words[++at]));
                        break;
                    default:
                        Levels image = read(words[++at], words[++at], words[++at]);
                        requests.set(last, requests.get(last)
                                .withImage(image, Double.parseDouble(words[++at])));
                }
            }
            Package opened = Package.open(files(folder));
            opened = size == null ? opened : opened.at(size);
            draw(opened, engine, requests, out, keep, previews, stopAt);
        } catch (FourstepException | CancellationException error) {
            System.out.println(error.getClass().getSimpleName() + " " + error.getMessage());
        }
        System.out.println("open " + engine.open + " opened " + engine.opened);
    }

    private static void draw(Package opened, Engine engine, List<Request> requests, File out,
            boolean keep, boolean previews, int stopAt) {
        Stop stop = new Stop();
        try (Player player = opened.player(engine, keep)) {
            player.draw(requests, stop, event -> {
                if (event instanceof Event.Remark) {
                    System.out.println("remark " + ((Event.Remark) event).text);
                } else if (event instanceof Event.Conditioned) {
                    System.out.println("conditioned " + ((Event.Conditioned) event).prompts);
                } else if (event instanceof Event.Step) {
                    step((Event.Step) event, out, previews);
                    if (((Event.Step) event).step == stopAt) {
                        stop.request();
                    }
                } else {
                    Event.Picture picture = (Event.Picture) event;
                    System.out.println("picture " + picture.index);
                    write(new File(out, picture.index + ".rgb"), picture.pixels.rgb);
                }
            });
        }
    }

    private static File[] files(String folders) {
        List<File> found = new ArrayList<>();
        for (String folder : folders.split(File.pathSeparator)) {
            found.add(new File(folder));
        }
        return found.toArray(new File[0]);
    }

    private static void step(Event.Step step, File out, boolean previews) {
        System.out.println("step " + step.index + " " + step.step + " of " + step.steps);
        ByteBuffer bytes = ByteBuffer.allocate(4 * step.latent.floats.length)
                .order(ByteOrder.LITTLE_ENDIAN);
        bytes.asFloatBuffer().put(step.latent.floats);
        String name = step.index + "-" + step.step;
        write(new File(out, name + ".latent"), bytes.array());
        Levels shown = previews ? step.preview() : null;
        if (shown != null) {
            write(new File(out, name + ".rgb"), shown.rgb);
        }
    }

    private static Levels read(String file, String width, String height) throws Exception {
        byte[] rgb = java.nio.file.Files.readAllBytes(new File(file).toPath());
        return new Levels(Integer.parseInt(width), Integer.parseInt(height), rgb);
    }

    private static void write(File file, byte[] bytes) {
        try (FileOutputStream stream = new FileOutputStream(file)) {
            stream.write(bytes);
        } catch (java.io.IOException error) {
            throw new IllegalStateException(error);
        }
    }

    private Draw() {}
}
