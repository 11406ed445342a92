"""Content Credentials: a signed C2PA manifest in a picture that says a model made it. No torch.

``sign`` writes one, with a key of the user's (``keys``: a file; ``token``: PKCS#11) and the
certificates that belong to it (``chain``); ``check`` reads one. Nothing here opens a connection:
no time stamp is asked for, and what a picture names elsewhere is not fetched.
"""
