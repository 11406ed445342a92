package dev.fourstep

import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.Channel
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.buffer
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.launch

/**
 * The events of a drawing, as they happen: [Event.Conditioned], then each [Event.Step], then each
 * [Event.Picture].
 *
 * Whoever collects may be on the main thread: drawing is on [dispatcher]. When the collector is
 * cancelled the drawing ends, in the middle of a graph where the engine can, and the flow is over
 * only when its graphs are closed. What cannot be drawn is thrown: [RequestException],
 * [PackageException].
 *
 * @param previews whether each step's preview is computed beside the steps, so that
 *   [Event.Step.preview] has it at once.
 */
public fun Player.events(
    requests: List<Request>,
    previews: Boolean = true,
    dispatcher: CoroutineDispatcher = Dispatchers.IO,
): Flow<Event> = callbackFlow {
    val stop = Stop()
    launch(dispatcher) {
        try {
            draw(requests, stop) { event ->
                if (previews && event is Event.Step) event.preview()
                trySendBlocking(event)
            }
            close()
        } catch (error: CancellationException) {
            close() // the collector has gone
        } catch (error: Exception) {
            close(error)
        }
    }
    awaitClose { stop.request() }
}.buffer(Channel.BUFFERED)

/** The events of one request. */
public fun Player.events(request: Request): Flow<Event> = events(listOf(request))
