"""Signatures of packages, as OpenSSF model-signing writes them: made, and checked. No torch.

``signature`` is the file ``model.sig``, ``check`` says whether it holds for somebody who is
trusted, ``sign`` writes it. ``identity`` checks those by an identity of Sigstore's; ``keyless``
makes them, and is all here that opens a connection.
"""
