package com.google.android.play.core.assetpacks;

/** For compiling alone: the signatures of the real class that are used. */
public abstract class AssetPackLocation {
    public abstract String assetsPath();
}
