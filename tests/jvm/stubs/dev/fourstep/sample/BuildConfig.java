package dev.fourstep.sample;

/** For compiling alone: the signatures of the real class that are used. */
public final class BuildConfig {
    public static final String[] PACKS = {};

    private BuildConfig() {}
}
