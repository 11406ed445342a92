"""The full-size model: fourstep and its peers side by side, on the same checkpoint and machine.

    python -m benchmarks.fullsize FOLDER [--only PATTERN ...] [--limits 2G 3G 4G] [--json FILE]
                                         [--avx2]

Every contestant exports the checkpoint (written into FOLDER by ``fourstep synth`` unless it is
there) and draws the same prompt and seed twice, without guidance, in processes of its own. Peers
live in environments of their own, which are made in FOLDER/environments. With ``--avx2`` all draw
as on a processor without AVX-512 and VNNI (``benchmarks.avx2``).
"""
