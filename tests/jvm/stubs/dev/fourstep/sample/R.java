package dev.fourstep.sample;

/** For compiling alone: the signatures of the real class that are used. */
public final class R {
    public static final class string {
        public static final int prompt = 0;
        public static final int draw = 1;
        public static final int cancel = 2;
        public static final int waiting = 3;
        public static final int opening = 4;
        public static final int step = 5;
        public static final int done = 6;
    }
}
