package com.google.android.gms.tasks;

/** For compiling alone: the signatures of the real class that are used. */
public abstract class Task<T> {}
