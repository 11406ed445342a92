package dev.fourstep.sample

import android.app.Activity
import android.os.Bundle
import android.widget.Button
import android.widget.EditText
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import dev.fourstep.Event
import dev.fourstep.FourstepException
import dev.fourstep.Package
import dev.fourstep.Player
import dev.fourstep.Request
import dev.fourstep.android.packageFolders
import dev.fourstep.android.refusal
import dev.fourstep.android.toBitmap
import dev.fourstep.events
import dev.fourstep.onnx.OnnxEngine
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.MainScope
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** A prompt, a picture that comes into being step by step, and a button that draws or cancels. */
class MainActivity : Activity() {
    private val scope: CoroutineScope = MainScope()
    private var player: Player? = null
    private var drawing: Job? = null
    private lateinit var prompt: EditText
    private lateinit var status: TextView
    private lateinit var picture: ImageView
    private lateinit var button: Button

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        prompt = EditText(this).apply { setText(R.string.prompt) }
        status = TextView(this)
        picture = ImageView(this).apply { adjustViewBounds = true }
        button = Button(this).apply {
            setText(R.string.draw)
            setOnClickListener { drawOrCancel() }
        }
        val attribution = TextView(this).apply { setText(R.string.attribution) }
        val page = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            fitsSystemWindows = true
            listOf(prompt, button, status, picture, attribution).forEach(::addView)
        }
        setContentView(page)
    }

    private fun drawOrCancel() {
        val running = drawing
        if (running?.isActive == true) {
            running.cancel()
            return
        }
        val request = Request.of(prompt.text.toString()).withSeed(System.nanoTime())
        button.setText(R.string.cancel)
        drawing = scope.launch {
            try {
                ready()?.events(request)?.collect(::show)
            } catch (error: FourstepException) {
                status.text = error.message
            }
        }.also { it.invokeOnCompletion { runOnUiThread { button.setText(R.string.draw) } } }
    }

    /** The player, made off the main thread: every file is read for its digest. */
    private suspend fun ready(): Player? = player ?: run {
        val folders = packageFolders(this, BuildConfig.PACKS.toList())
        if (folders.isEmpty()) {
            status.setText(R.string.waiting)
            return null
        }
        status.setText(R.string.opening)
        val opened = withContext(Dispatchers.IO) { Package.open(*folders.toTypedArray()) }
        val reason = refusal(this, opened.manifest)
        if (reason != null) {
            status.text = reason
            return null
        }
        withContext(Dispatchers.IO) { opened.player(OnnxEngine(0), false) }.also { player = it }
    }

    private fun show(event: Event) {
        when (event) {
            is Event.Remark -> status.text = event.text
            is Event.Step -> {
                status.text = getString(R.string.step, event.step, event.steps)
                event.preview()?.let { picture.setImageBitmap(it.toBitmap()) }
            }
            is Event.Picture -> {
                status.setText(R.string.done)
                picture.setImageBitmap(event.pixels.toBitmap())
            }
        }
    }

    override fun onDestroy() {
        scope.cancel()
        val last = player
        if (last != null) Thread(last::close).start() // waits for the graph that runs
        super.onDestroy()
    }
}
