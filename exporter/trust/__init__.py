"""Signatures of packages, as OpenSSF model-signing writes them: made, and checked. No torch.

``signature`` is the file ``model.sig``, ``check`` says whether it holds for somebody who is
trusted, ``sign`` writes it. Nothing here opens a connection.
"""
