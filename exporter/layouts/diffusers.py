"""The diffusers layout: a folder for each component, as OpenVINO GenAI and the optimums load it.

The graphs are the native ones with a client's ports around them: conditioner and denoiser run one
behind the other, at each step. What these clients allow stays folded: the crop of positions, all
sizes but the number of text tokens, null tokens in the place of T5, the VAE's scale and shift. The
end of a long prompt, the number of T5's tokens and the schedule are the graphs' own, so a bare call
draws what the recipe says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import fx

from exporter.backends.contract import PortForm
from exporter.layouts import Form, loop
from exporter.layouts.adapters import Conditions, Gain, Ids, PickStep, adapter
from exporter.layouts.beside import TOKENIZERS, configurations, tokenizer_files
from exporter.layouts.chain import Link, chain
from exporter.layouts.contract import Call, ClientDrawing, ClientFacts, ClientGraph, Maker
from exporter.layouts.schedule import ClientSchedule, client_schedule
from exporter.network.layers import CLIP_TOKENS
from exporter.package.manifest import Port, Tokenizer
from exporter.package.names import DECODERS
from exporter.quantize.formats import FORMATS
from exporter.quantize.program import Part, QuantizedProgram

# Every value of the picture comes from it, and it has few: with codes of 8 bits it alone makes more
# of the picture's error than all else in the VAE (5 dB), where clients' own exporters gain on ours.
LAST = "decoder.conv_out.weight"
MOST_TEXT_TOKENS = 512  # of T5 in any client; the graphs take fewer and more
FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}


class Diffusers:
    """The layout of GenAI and the optimums."""

    __slots__ = ()
    tokenizer_folders: Final[Mapping[str, str]] = TOKENIZERS

    def schedule(self, sigmas: Sequence[float]) -> ClientSchedule:
        """What ``scheduler_config.json`` says, and what is bent in the graph."""
        return client_schedule(sigmas)

    def graphs(
        self,
        programs: Mapping[str, QuantizedProgram],
        tokenizers: Mapping[str, Tokenizer],
        schedule: ClientSchedule,
        form: Form,
    ) -> tuple[ClientGraph, ...]:
        """One for each component."""
        return client_graphs(programs, tokenizers, schedule, form.velocity)

    def texts(self, told: ClientFacts) -> dict[str, str]:
        """Configurations, and tokenizers as transformers reads them."""
        found = configurations(told)
        for encoder, file in told.tokenizers.items():
            for name, text in tokenizer_files(encoder, file.text, file.entry).items():
                found[f"{TOKENIZERS[encoder]}/{name}"] = text
        return found

    def draw(
        self,
        call: Call,
        graphs: Mapping[str, QuantizedProgram],
        ids: Mapping[str, np.ndarray],
        noise: np.ndarray,
        schedule: ClientSchedule,
    ) -> ClientDrawing:
        """As these clients do, whose loops are as short as they are alike."""
        width = graphs["transformer"].inputs[1].shape[2]
        text = loop.encode(call, {FOLDERS[name]: value for name, value in ids.items()}, width)
        latents = tuple(loop.steps(call, text, noise, schedule))
        return ClientDrawing(latents, loop.decode(call, latents[-1]))


def client_graphs(
    programs: Mapping[str, QuantizedProgram],
    tokenizers: Mapping[str, Tokenizer],
    schedule: ClientSchedule,
    velocity: str,
) -> tuple[ClientGraph, ...]:
    """The graphs of the layout, in the order in which a client runs them.

    Args:
        programs: the native ones, by graph, with rounded inputs where the scheme has them.
        tokenizers: by text encoder.
        velocity: what clients call the MMDiT's output.
    """
    graphs = [_clip(name, programs[name], tokenizers[name]) for name in ("clip_l", "clip_g")]
    if "t5" in programs:
        graphs.append(_t5(programs["t5"], tokenizers["t5"]))
    graphs.append(_transformer(programs, schedule, velocity))
    decoder = next(programs[name] for name in DECODERS if name in programs)
    spared = as_in_checkpoint(decoder, LAST)
    graphs.append(_renamed(spared, "vae_decoder", "latent_sample", "sample"))
    encoder = next((programs[n] for n in ("vae_encoder", "tiny_encoder") if n in programs), None)
    if encoder is not None and schedule.is_exact:  # else a start would be as noisy as for others
        graphs.append(_renamed(encoder, "vae_encoder", "sample", "latent_sample"))
    return tuple(graphs)


def _clip(name: str, native: QuantizedProgram, entry: Tokenizer) -> ClientGraph:
    """A CLIP encoder of four outputs, told by its configuration to have one layer.

    Clients take of all hidden states the one before the last; so there are two.
    """
    native = _with_states(native)
    links = _tokens(entry, Port("input_ids", (1, entry.tokens), "int32"), is_free=False)
    values = {port.name: port.name for port in native.outputs}
    program = chain(
        name,
        (Port("input_ids", (1, entry.tokens), "int32"),),
        (*links, Link(native, {"ids": "ids"}, values)),
        {
            "text_embeds": "pooled",
            "last_hidden_state": "normed",
            "hidden_states.0": "hidden",
            "hidden_states.1": "last",
        },
    )
    return ClientGraph(FOLDERS[name], program, {"input_ids": PortForm(is_wide=True)}, (name,))


def _with_states(native: QuantizedProgram) -> QuantizedProgram:
    """A CLIP encoder that also gives its last states, before and after the last norm."""
    (pooling,) = (n for n in native.nodes() if n.target is torch.ops.aten.index_select.default)
    normed = pooling.args[0]
    assert isinstance(normed, fx.Node) and isinstance(normed.args[0], fx.Node)
    found = {"normed": normed, "last": normed.args[0]}
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in native.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[node] for node in (*native.results(), *found.values())))
    ports = tuple(Port(name, tuple(node.meta["val"].shape)) for name, node in found.items())
    return QuantizedProgram(
        native.name, native.inputs, (*native.outputs, *ports), graph, native.tensors,
        native.formats, native.adjusted, native.methods,
    )  # fmt: skip


def _t5(native: QuantizedProgram, entry: Tokenizer) -> ClientGraph:
    given = Port("input_ids", (1, MOST_TEXT_TOKENS), "int32")
    links = _tokens(entry, given, is_free=True)
    program = chain(
        "t5",
        (given,),
        (*links, Link(native, {"ids": "ids"}, {"hidden": "hidden"})),
        {"last_hidden_state": "hidden"},
    )
    form = PortForm(is_wide=True, free_axes=(1,))
    return ClientGraph(FOLDERS["t5"], program, {"input_ids": form}, ("t5",))


def _tokens(entry: Tokenizer, given: Port, is_free: bool) -> Sequence[Link]:
    with torch.device("meta"):
        module = Ids(entry, is_free)
    program = adapter("ids", module, (given,), ("ids",))
    return (Link(program, {given.name: given.name}, {"ids": "ids"}),)


def _transformer(
    programs: Mapping[str, QuantizedProgram], schedule: ClientSchedule, velocity: str
) -> ClientGraph:
    """The whole MMDiT: text and time embedders and adaLN of the conditioner, and the denoiser."""
    conditioner, denoiser = programs["conditioner"], programs["denoiser"]
    states = {port.name: port.shape for port in conditioner.inputs}
    width = _context_width(conditioner)
    latent = denoiser.inputs[0].shape
    inputs = (
        Port("hidden_states", latent),
        Port("encoder_hidden_states", (1, CLIP_TOKENS + MOST_TEXT_TOKENS, width)),
        Port("pooled_projections", (1, states["pooled_l"][1] + states["pooled_g"][1])),
        Port("timestep", (1,)),
    )
    with torch.device("meta"):
        t5_tokens = states["hidden_t5"][1] if "hidden_t5" in states else 0
        hidden = (states["hidden_l"][2], states["hidden_g"][2])
        conditions = Conditions(hidden, states["pooled_l"][1], width, t5_tokens)
        step, gain = PickStep(schedule), Gain()
    texts = ("hidden_l", "hidden_g", "pooled_l", "pooled_g", "hidden_t5")[: len(states)]
    modulation = conditioner.outputs[1]
    links = (
        Link(
            adapter("conditions", conditions, inputs[1:3], texts),
            {port.name: port.name for port in inputs[1:3]},
            {name: name for name in texts},
        ),
        Link(
            conditioner,
            {name: name for name in texts},
            {"context": "context", "modulation": "rows"},
        ),
        Link(
            adapter("step", step, (inputs[3], modulation), ("row", "gain")),
            {"timestep": "timestep", "modulation": "rows"},
            {"row": "row", "gain": "gain"},
        ),
        Link(
            denoiser,
            {"latent": "hidden_states", "context": "context", "modulation": "row"},
            {"velocity": "velocity"},
        ),
        Link(
            adapter("gain", gain, (denoiser.outputs[0], Port("gain", (1, 1))), ("out",)),
            {"velocity": "velocity", "gain": "gain"},
            {"out": "out"},
        ),
    )
    program = chain("transformer", inputs, links, {velocity: "out"})
    forms = {"encoder_hidden_states": PortForm(free_axes=(1,))}
    return ClientGraph("transformer", program, forms, ("conditioner", "denoiser"))


def as_in_checkpoint(native: QuantizedProgram, name: str) -> QuantizedProgram:
    """A program with one weight as the checkpoint has it, where it has codes."""
    if not _has_codes(native, name):
        return native
    graph, copies, tensors = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, object]()
    for node in native.graph.nodes:
        source, part = native.tensors.get(node.name), native.part(node)
        if node.op == "placeholder" and isinstance(source, Part) and source.of.name == name:
            continue
        if part is not None and part.of.name == name:
            whole = copies[node] = graph.placeholder(f"{node.name}_whole")
            whole.name, whole.meta["val"] = f"{node.name}_whole", node.meta["val"]
            tensors[whole.name] = part.of
            continue
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        copies[node].name = node.name
        if source is not None:
            tensors[node.name] = source
    return QuantizedProgram(
        native.name, native.inputs, native.outputs, graph, tensors,
        native.formats | {name: FORMATS["fp32"]}, native.adjusted, native.methods,
    )  # fmt: skip


def _has_codes(program: QuantizedProgram, name: str) -> bool:
    return name in program.formats and program.formats[name].storage.kind != "float"


def _context_width(conditioner: QuantizedProgram) -> int:
    """The width of the text's states, which the weight of the context embedder has."""
    embedder = conditioner.stored()["context_embedder.weight"]
    return int(embedder.shape[1])


def _renamed(native: QuantizedProgram, folder: str, given: str, made: str) -> ClientGraph:
    """A graph of one port on either side, under a client's names."""
    (taken,), (gives,) = native.inputs, native.outputs
    link = Link(native, {taken.name: given}, {gives.name: made})
    program = chain(native.name, (Port(given, taken.shape),), (link,), {made: made})
    return ClientGraph(folder, program, {}, (native.name,))


MAKER: Final[Maker] = Diffusers()
