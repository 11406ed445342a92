package dev.fourstep;

import java.util.concurrent.Callable;

/** What happens while pictures are drawn. */
public abstract class Event {
    private Event() {}

    /** Something to know of a request, as that the end of a prompt is not read. */
    public static final class Remark extends Event {
        public final String text;

        Remark(String text) {
            this.text = text;
        }
    }

    /** All prompts, negative ones among them, are encoded. */
    public static final class Conditioned extends Event {
        public final int prompts;

        Conditioned(int prompts) {
            this.prompts = prompts;
        }
    }

    /** Step {@link #step} of {@link #steps} of request {@link #index} is done. */
    public static final class Step extends Event {
        /** Counted from 0. */
        public final int index;
        /** Counted from 1. */
        public final int step;
        public final int steps;
        public final double sigma;
        /** (1, channels, h, w). */
        public final Tensor latent;
        private final Callable<Levels> show;
        private volatile Levels shown;

        Step(int index, int step, int steps, double sigma, Tensor latent, Callable<Levels> show) {
            this.index = index;
            this.step = step;
            this.steps = steps;
            this.sigma = sigma;
            this.latent = latent;
            this.show = show;
        }

        /**
         * What the latent would be as a picture, computed when it is first asked for: small, or of
         * full size where the package has a graph for it; null where it has neither.
         *
         * <p>Ask for it in the listener: on another thread it waits until the drawing is over.
         */
        public Levels preview() {
            try {
                if (shown == null && show != null) {
                    shown = show.call();
                }
                return shown;
            } catch (RuntimeException error) {
                throw error;
            } catch (Exception error) {
                throw new PackageException("the preview cannot be drawn: " + error, error);
            }
        }
    }

    /** A picture is done. */
    public static final class Picture extends Event {
        /** Of its request, counted from 0. */
        public final int index;
        public final Request request;
        public final Levels pixels;
        /** That it was decoded from, (1, channels, h, w). */
        public final Tensor latent;

        Picture(int index, Request request, Levels pixels, Tensor latent) {
            this.index = index;
            this.request = request;
            this.pixels = pixels;
            this.latent = latent;
        }
    }

    /** Who is told; on the thread that draws. */
    public interface Listener {
        void on(Event event);
    }
}
