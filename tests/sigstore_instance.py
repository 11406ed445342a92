"""An instance of Sigstore on this machine: an authority, its log, a log of signatures, time stamps.

As Fulcio, Rekor (both kinds) and a time stamp authority answer, over HTTP on the loopback.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import Issued, issue, key_pem, pem

WHO, ISSUER = "release@maker.example", "https://accounts.maker.example"
SCT_LIST = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
FULCIO = "1.3.6.1.4.1.57264.1."
MINUTE = timedelta(minutes=1)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def spki(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def token(who: str = WHO, issuer: str = ISSUER, lasts: timedelta = 5 * MINUTE) -> str:
    now = datetime.now(UTC)
    claims = {"aud": "sigstore", "sub": who, "iss": issuer, "iat": now - 2 * abs(lasts)}
    return jwt.encode(claims | {"exp": now + lasts}, "not a secret" * 4, algorithm="HS256")


# A log: a Merkle tree (RFC 6962).


def root_of(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    half = 1 << (len(leaves) - 1).bit_length() - 1
    return node(root_of(leaves[:half]), root_of(leaves[half:]))


def path_of(at: int, leaves: list[bytes]) -> list[bytes]:
    """What leads from a leaf to the root, the nearest first."""
    if len(leaves) == 1:
        return []
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if at < half:
        return [*path_of(at, leaves[:half]), root_of(leaves[half:])]
    return [*path_of(at - half, leaves[half:]), root_of(leaves[:half])]


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def leaf(body: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + body).digest()


@dataclass
class Instance:
    """What signs, and what it does otherwise than it should.

    Attributes:
        folder: of the time stamp authority's files.
        tiles: the second kind of log, which stamps no time, with a time stamp authority.
        logged_after: from the certificate's issue until the log says that it had the signature.
        refuses: the authority answers 403.
    """

    folder: Path
    tiles: bool = False
    logged_after: timedelta = timedelta()
    refuses: bool = False
    url: str = ""
    asked: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority = issue("authority", authority=True)
        self.ct_key = ec.generate_private_key(ec.SECP256R1())
        self.log_key: Any = ec.generate_private_key(ec.SECP256R1())
        self.name = "log.maker.example"
        self.log_id = hashlib.sha256(spki(self.log_key)).digest()
        if self.tiles:
            self.log_key = ed25519.Ed25519PrivateKey.generate()
            raw = self.log_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            self.log_id = hashlib.sha256(self.name.encode() + b"\n\x01" + raw).digest()
        self.leaves = [leaf(str(i).encode()) for i in range(5)]
        self.stamper = issue("time stamps", authority=True)
        purposes = (ExtendedKeyUsageOID.TIME_STAMPING,)
        self.stamps = issue("stamps", self.stamper, purposes=purposes, critical_purposes=True)
        (self.folder / "tsa.pem").write_bytes(self.stamps.chain)
        (self.folder / "tsa.key").write_bytes(key_pem(self.stamps.key))
        (self.folder / "serial").write_text("01\n")
        (self.folder / "tsa.cnf").write_text(TSA.format(folder=self.folder))

    # What it says of itself.

    def trusted_root(self) -> dict[str, Any]:
        begun = {"start": "2020-01-01T00:00:00Z"}
        details = "PKIX_ED25519" if self.tiles else "PKIX_ECDSA_P256_SHA_256"
        chains = [
            {
                "subject": {"organization": "Maker", "commonName": "authority"},
                "uri": self.url,
                "certChain": chain(one),
                "validFor": begun,
            }
            for one in (self.authority, self.stamps)
        ]
        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [self._log(self.log_key, self.log_id, details)],
            "certificateAuthorities": chains[:1],
            "ctlogs": [self._log(self.ct_key, hashlib.sha256(spki(self.ct_key)).digest())],
            "timestampAuthorities": chains[1:] if self.tiles else [],
        }

    def _log(self, key: Any, name: bytes, details: str = "PKIX_ECDSA_P256_SHA_256") -> Any:
        begun = {"start": "2020-01-01T00:00:00Z"}
        public = {"rawBytes": b64(spki(key)), "keyDetails": details, "validFor": begun}
        return {
            "baseUrl": self.url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": public,
            "logId": {"keyId": b64(name)},
        }

    def write(self, folder: Path) -> tuple[Path, Path]:
        """The files of the trusted root, and of the trust configuration."""
        service = {"validFor": {"start": "2020-01-01T00:00:00Z"}, "operator": "maker.example"}
        one = service | {"url": self.url, "majorApiVersion": 1}
        log = one | {"majorApiVersion": 2 if self.tiles else 1}
        config = {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": self.trusted_root(),
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [one],
                "oidcUrls": [one],
                "rekorTlogUrls": [log],
                "tsaUrls": [one | {"url": f"{self.url}/stamp"}] if self.tiles else [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }
        root, whole = folder / "trusted_root.json", folder / "trust_config.json"
        root.write_text(json.dumps(self.trusted_root()))
        whole.write_text(json.dumps(config))
        return root, whole

    # The authority.

    def certify(self, asked: Any, bearer: str) -> Any:
        self.tokens.append(bearer)
        claims = jwt.decode(bearer, options={"verify_signature": False}, audience="sigstore")
        request = x509.load_pem_x509_csr(base64.b64decode(asked["certificateSigningRequest"]))
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.authority.certificate.subject)
            .public_key(request.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - MINUTE)
            .not_valid_after(now + 10 * MINUTE)
        )
        for extension, critical in self._extensions(claims, request):
            builder = builder.add_extension(extension, critical)
        before = builder.sign(self.authority.key, hashes.SHA256())
        stamped = self._stamped(before.tbs_certificate_bytes, now)
        whole = builder.add_extension(x509.UnrecognizedExtension(SCT_LIST, stamped), False)
        certificate = whole.sign(self.authority.key, hashes.SHA256())
        found = [pem(one).decode() for one in (certificate, self.authority.certificate)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": found}}}

    def _extensions(self, claims: Any, request: Any) -> Iterator[tuple[Any, bool]]:
        own = self.authority.key.public_key()
        who, issuer = claims["sub"], claims["iss"].encode()
        name = x509.RFC822Name(who) if "@" in who else x509.UniformResourceIdentifier(who)
        usage = (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        )
        yield x509.KeyUsage(**{bit: bit == "digital_signature" for bit in usage}), True
        yield x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False
        yield x509.SubjectKeyIdentifier.from_public_key(request.public_key()), False
        yield x509.AuthorityKeyIdentifier.from_issuer_public_key(own), False
        yield x509.SubjectAlternativeName([name]), True
        for number, value in ("1", issuer), ("8", bytes([0x0C, len(issuer)]) + issuer):
            yield x509.UnrecognizedExtension(x509.ObjectIdentifier(FULCIO + number), value), False

    def _stamped(self, tbs: bytes, now: datetime) -> bytes:
        """A list of one signed certificate timestamp (RFC 6962) in an octet string."""
        ms = int(now.timestamp() * 1000).to_bytes(8, "big")
        issuer = hashlib.sha256(spki(self.authority.key)).digest()
        entry = issuer + len(tbs).to_bytes(3, "big") + tbs
        said = b"\0\0" + ms + b"\0\1" + entry + b"\0\0"
        made = self.ct_key.sign(said, ec.ECDSA(hashes.SHA256()))
        log = hashlib.sha256(spki(self.ct_key)).digest()
        sct = b"\0" + log + ms + b"\0\0" + b"\4\3" + len(made).to_bytes(2, "big") + made
        listed = len(sct).to_bytes(2, "big") + sct
        whole = len(listed).to_bytes(2, "big") + listed
        return (b"\x04" if len(whole) < 128 else b"\x04\x81") + bytes([len(whole)]) + whole

    # The log.

    def enter(self, asked: Any) -> Any:
        envelope = json.loads(asked["spec"]["proposedContent"]["envelope"])
        verifier = asked["spec"]["proposedContent"]["verifiers"][0]
        payload = base64.b64decode(envelope["payload"])
        whole = asked["spec"]["proposedContent"]["envelope"].encode()
        signature = {"signature": envelope["signatures"][0]["sig"], "verifier": verifier}
        body = canonical(
            {
                "apiVersion": "0.0.1",
                "kind": "dsse",
                "spec": {
                    "envelopeHash": digest(whole),
                    "payloadHash": digest(payload),
                    "signatures": [signature],
                },
            }
        )
        at = self._take(body)
        time = int((datetime.now(UTC) + self.logged_after).timestamp())
        place = 1000 + at  # of all the log's trees
        said = {
            "body": b64(body),
            "integratedTime": time,
            "logID": self.log_id.hex(),
            "logIndex": place,
        }
        proof = {
            "checkpoint": self._note(f"{self.name} - 42"),
            "hashes": [one.hex() for one in path_of(at, self.leaves)],
            "logIndex": at,
            "rootHash": root_of(self.leaves).hex(),
            "treeSize": len(self.leaves),
        }
        promise = b64(self._sign(canonical(said)))
        return {
            "f" * 80: said
            | {"verification": {"inclusionProof": proof, "signedEntryTimestamp": promise}}
        }

    def enter_tile(self, asked: Any) -> Any:
        wanted = asked["hashedRekordRequestV002"]
        record = {
            "data": {"algorithm": "SHA2_256", "digest": wanted["digest"]},
            "signature": wanted["signature"],
        }
        body = canonical(
            {"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": record}}
        )
        at = self._take(body)
        return {
            "logIndex": str(at),
            "logId": {"keyId": b64(self.log_id)},
            "kindVersion": {"kind": "hashedrekord", "version": "0.0.2"},
            "inclusionProof": {
                "logIndex": str(at),
                "rootHash": b64(root_of(self.leaves)),
                "treeSize": str(len(self.leaves)),
                "hashes": [b64(one) for one in path_of(at, self.leaves)],
                "checkpoint": {"envelope": self._note(self.name)},
            },
            "canonicalizedBody": b64(body),
        }

    def _take(self, body: bytes) -> int:
        """Put an entry into the log, with some of others' around it."""
        at = len(self.leaves)
        self.leaves += [leaf(body), *(leaf(b"another" + bytes([i])) for i in range(3))]
        return at

    def _note(self, origin: str) -> str:
        text = f"{origin}\n{len(self.leaves)}\n{b64(root_of(self.leaves))}\n"
        signed = b64(self.log_id[:4] + self._sign(text.encode()))
        return f"{text}\n\u2014 {self.name} {signed}\n"

    def _sign(self, message: bytes) -> bytes:
        if self.tiles:
            return bytes(self.log_key.sign(message))
        return bytes(self.log_key.sign(message, ec.ECDSA(hashes.SHA256())))

    def stamp(self, asked: bytes) -> bytes:
        query = self.folder / "query"
        query.write_bytes(asked)
        line = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query"]
        return subprocess.run(line, cwd=self.folder, capture_output=True, check=True).stdout


TSA = """
[tsa]
default_tsa = maker
[maker]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4
digests = sha256
accuracy = secs:1
"""


def digest(content: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()}


def chain(issued: Issued) -> dict[str, Any]:
    certificates = (issued.certificate, *issued.above)
    return {"certificates": [{"rawBytes": b64(c.public_bytes(Encoding.DER))} for c in certificates]}


@contextmanager
def served(instance: Instance) -> Iterator[Instance]:
    """The instance with a port of this machine, while it is open."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """What the library's own command asks first: where a browser would go for a token."""
            places = ("authorization_endpoint", "token_endpoint")
            self._send(200, json.dumps(dict.fromkeys(places, instance.url)).encode())

        def do_POST(self) -> None:
            instance.asked.append(self.path)
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/stamp":
                return self._send(200, instance.stamp(content))
            asked = json.loads(content)
            if self.path == "/api/v2/signingCert":
                bearer = self.headers["Authorization"].removeprefix("Bearer ")
                if instance.refuses:
                    return self._send(403, json.dumps({"message": f"no {bearer}"}).encode())
                made = instance.certify(asked, bearer)
            elif self.path == "/api/v1/log/entries":
                made = instance.enter(asked)
            elif self.path == "/api/v2/log/entries":
                made = instance.enter_tile(asked)
            else:
                return self._send(404, b"{}")
            return self._send(201, json.dumps(made).encode())

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing: tests look at what is written."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    instance.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield instance
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
