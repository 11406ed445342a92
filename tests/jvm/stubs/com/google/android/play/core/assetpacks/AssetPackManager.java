package com.google.android.play.core.assetpacks;

import com.google.android.gms.tasks.Task;
import java.util.List;

/** For compiling alone: the signatures of the real class that are used. */
public interface AssetPackManager {
    AssetPackLocation getPackLocation(String pack);

    Task<AssetPackStates> fetch(List<String> packs);
}
