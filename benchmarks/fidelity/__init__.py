"""Our quantizer against the peers': bytes of the MMDiT's weights against what they cost.

    python -m benchmarks.fidelity [--packages DIR ...] [--json FILE] [--results FILE]
                                  [--plot FILE.png]

Everybody gets the same two graphs, conditioner and denoiser of shapes-flash in float32 (Core ML:
fp16, the form that its users have), and the same calibration inputs: those of the recipe's
calibration prompts along their four steps. Text encoders and VAE stay float32, and activations are
never rounded, so what is compared is quantizers. A peer's graph runs in its own runtime, with what
the peer changed around the weights; Core ML's weights run in our ONNX graph, where they are found
by what they resemble.

Bytes are all constants of the two graphs as they are stored: codes, scales, zero points, tables and
what was left alone. Bits are those bytes over the values of the unquantized graphs.
"""
