package dev.fourstep.android

import android.app.ActivityManager
import android.content.Context
import android.graphics.Bitmap
import com.google.android.play.core.assetpacks.AssetPackManagerFactory
import dev.fourstep.Levels
import dev.fourstep.Manifest
import java.io.File

// What of this library needs Android: where the package lies, whether memory holds it, and bitmaps.

private const val WORK_BYTES = 128L shl 20 // of the runtime and the app, beside the graphs

/**
 * The folders that a package lies in, or an empty list while its packs are not all there: they are
 * asked for then.
 *
 * While developing, `adb push` it to the app's external files instead: what lies in their folder
 * `package` is taken first.
 */
public fun packageFolders(context: Context, packs: List<String>): List<File> {
    val pushed = File(context.getExternalFilesDir(null), "package")
    if (File(pushed, "manifest.json").isFile) return listOf(pushed)
    val manager = AssetPackManagerFactory.getInstance(context)
    val places = packs.map { manager.getPackLocation(it)?.assetsPath() }
    if (null in places) manager.fetch(packs) // what is on its way already goes on
    return if (null in places) emptyList() else places.map { File(it, "package") }
}

/**
 * Why this device should not draw with a package now, or null when its memory holds it.
 *
 * Graphs lie outside of the Java heap, so what counts is the device's memory, and not
 * `largeMemoryClass`; that one bounds what the loop itself holds, which is small beside the graphs.
 */
public fun refusal(context: Context, manifest: Manifest): String? {
    val manager = context.getSystemService(Context.ACTIVITY_SERVICE) as ActivityManager
    val memory = ActivityManager.MemoryInfo().also(manager::getMemoryInfo)
    val heapBytes = manager.largeMemoryClass.toLong() shl 20
    val pixelBytes = 64L * manifest.picture.widthPx * manifest.picture.heightPx // of the loop
    val needed = maxOf(manifest.predictedPeakBytes, 0) + WORK_BYTES
    return when {
        pixelBytes > heapBytes -> "a picture takes $pixelBytes bytes of the heap's $heapBytes"
        needed > memory.totalMem - memory.threshold ->
            "drawing takes about ${needed shr 20} MiB, and this device has ${memory.totalMem shr 20}"
        memory.lowMemory || needed > memory.availMem - memory.threshold ->
            "drawing takes about ${needed shr 20} MiB, and ${memory.availMem shr 20} are free now"
        else -> null
    }
}

/** A picture for an `ImageView` or a canvas. */
public fun Levels.toBitmap(): Bitmap =
    Bitmap.createBitmap(argb(), widthPx, heightPx, Bitmap.Config.ARGB_8888)

/** A bitmap scaled until it covers the package's picture, and cut to it: where a drawing starts. */
public fun Bitmap.toLevels(manifest: Manifest): Levels {
    val (toWidth, toHeight) = manifest.picture.let { it.widthPx to it.heightPx }
    val scale = maxOf(toWidth.toFloat() / width, toHeight.toFloat() / height)
    val whole = Bitmap.createScaledBitmap(
        this,
        maxOf(toWidth, Math.round(width * scale)),
        maxOf(toHeight, Math.round(height * scale)),
        true,
    )
    val pixels = IntArray(toWidth * toHeight)
    val (left, top) = (whole.width - toWidth) / 2 to (whole.height - toHeight) / 2
    whole.getPixels(pixels, 0, toWidth, left, top, toWidth, toHeight)
    return Levels.ofArgb(toWidth, toHeight, pixels)
}
