package dev.fourstep

import java.io.File
import java.util.concurrent.atomic.AtomicInteger
import kotlinx.coroutines.cancel
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking

/** For tests: graphs that take a while, can be interrupted, and give halves of everything. */
private class Slow(private val milliseconds: Long) : Engine {
    val open = AtomicInteger()
    val ended = AtomicInteger()
    val interrupted = AtomicInteger()

    override fun opens(backend: String) = true

    override fun open(entry: File, graph: Manifest.GraphEntry): Graph {
        open.incrementAndGet()
        return object : Graph {
            @Volatile private var thread: Thread? = null

            override fun run(inputs: Map<String, Tensor>): Map<String, Tensor> {
                thread = Thread.currentThread()
                Thread.sleep(milliseconds)
                ended.incrementAndGet()
                return graph.outputs.mapValues { (_, port) ->
                    Tensor.of(FloatArray(port.shape.fold(1, Int::times)) { 0.5f }, *port.shape)
                }
            }

            override fun interrupt() {
                interrupted.incrementAndGet()
                thread?.interrupt()
            }

            override fun close() {
                open.decrementAndGet()
            }
        }
    }
}

private fun nameOf(event: Event) = when (event) {
    is Event.Step -> "step ${event.step} ${event.preview()?.widthPx}"
    is Event.Picture -> "picture ${event.pixels.widthPx} x ${event.pixels.heightPx}"
    is Event.Conditioned -> "conditioned ${event.prompts}"
    else -> "remark"
}

public fun main(folders: Array<String>) {
    val opened = Package.open(File(folders[0]))
    val quick = Slow(0)
    val events = runBlocking { opened.player(quick, false).events(Request.of("a")).toList() }
    println(events.joinToString { nameOf(it) })
    println("open ${quick.open}")

    val taken = Slow(1)
    runBlocking { opened.player(taken, false).events(Request.of("a")).take(2).toList() }
    println("taken: open ${taken.open}")

    val slow = Slow(60_000)
    val began = System.nanoTime()
    runBlocking {
        val job = launch { opened.player(slow, false).events(Request.of("a")).collect {} }
        while (slow.open.get() == 0) kotlinx.coroutines.delay(10)
        kotlinx.coroutines.delay(100)
        job.cancel()
        job.join() // only now are the graphs closed
        println("cancelled: open ${slow.open}, ended ${slow.ended}, interrupted ${slow.interrupted}")
    }
    println("in time ${System.nanoTime() - began < 30_000_000_000}")

    runBlocking {
        try {
            opened.player(quick, false).events(Request.of("a").withNegative("b")).collect {}
        } catch (error: RequestException) {
            println("refused ${error.field}")
        }
    }
}
