package com.google.android.play.core.assetpacks;

/** For compiling alone: the signatures of the real class that are used. */
public class AssetPackManagerFactory {
    public static native AssetPackManager getInstance(android.content.Context context);
}
