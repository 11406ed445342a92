package android.os;

/** For compiling alone: the signatures of the real class that are used. */
public final class Bundle {}
