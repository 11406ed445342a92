"""The C2PA library: loaded where it is needed, and told to stay off the network."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from exporter.errors import needs_extra

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}  # by Pillow's name
SUFFIXES = ".png, .jpg and .webp"
# What a certificate may be for, by RFC 5280, RFC 9336 and the C2PA specification.
PURPOSES = {
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.36": "documentSigning",
    "1.3.6.1.4.1.62558.2.1": "C2PA signing",
}


def load() -> Any:
    """The library; raises InputError with the pip command where it is not installed."""
    for module, distribution in (("c2pa", "c2pa-python"), ("cryptography", "cryptography")):
        if importlib.util.find_spec(module) is None:
            raise needs_extra("credentials", distribution)
    import c2pa

    return c2pa


def context(anchors: str | None = None) -> Any:
    """The library's settings: whatever would open a connection is off.

    Args:
        anchors: certificates to trust, PEM; None: whether a signer is known is not asked.
    """
    settings: dict[str, Any] = {
        "version": 1,
        "verify": {
            "remote_manifest_fetch": False,
            "ocsp_fetch": False,
            "verify_after_reading": True,
            "verify_after_sign": True,
            "verify_trust": anchors is not None,
        },
        "core": {"allowed_network_hosts": []},
        "trust": {"trust_config": "\n".join(PURPOSES)},
        "builder": {"thumbnail": {"enabled": False}},  # a picture that was started from is private
    }
    if anchors is not None:
        settings["trust"]["trust_anchors"] = anchors
    return load().Context.from_json(json.dumps(settings))
