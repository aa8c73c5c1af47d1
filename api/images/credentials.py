"""Content credentials (C2PA): every delivered image says, signed, that a trained model made it, and nothing of for whom.

Signing comes last: any later change of the file breaks the signature, as it should. Key and certificate are made at first use and
stored sealed; viewers say "unknown issuer" until a certificate of a listed authority replaces them.
"""

from __future__ import annotations

import datetime
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from api.records.service_secrets import service_label
from photoflux import __version__
from photoflux.vault.blobs import BlobExists, BlobMissing
from photoflux.vault.sealed import seal_bytes, unseal_bytes

if TYPE_CHECKING:
    from photoflux.vault.keyring import Keyring

NAME = "secrets/content-credentials"
VALID_DAYS = 3650
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
LIBRARY_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}, "verify": {"remote_manifest_fetch": False}}
"""No thumbnail, which would be a second copy of somebody's face; and no manifest is fetched from an address in a file."""


@dataclass(frozen=True)
class Credentials:
    """Signs with an ES256 key; `chain` are certificates, the signer's first, and `key` its PKCS#8 key, all PEM."""

    chain: str
    key: str

    def sign(self, file: bytes, media_type: str) -> bytes:
        """The file with its credentials in it."""
        from c2pa import Builder, Context, Settings

        sink = io.BytesIO()
        with (
            Context(settings=Settings.from_dict(LIBRARY_SETTINGS)) as context,
            Builder(_manifest(media_type), context) as builder,
        ):
            builder.sign(self._signer, media_type, io.BytesIO(file), sink)
        return sink.getvalue()

    @cached_property
    def _signer(self) -> Any:
        from c2pa import C2paSignerInfo, C2paSigningAlg, Signer

        info = C2paSignerInfo(C2paSigningAlg.ES256, self.chain.encode(), self.key.encode(), None)
        return Signer.from_info(info)


def read(file: bytes, media_type: str) -> dict[str, Any] | None:
    """What a file's credentials say, with `state`: Valid or Invalid; None for a file without any."""
    from c2pa import C2paError, Context, Reader, Settings

    try:
        with (
            Context(settings=Settings.from_dict(LIBRARY_SETTINGS)) as context,
            Reader(media_type, io.BytesIO(file), context=context) as reader,
        ):
            return {"state": reader.get_validation_state(), **json.loads(reader.json())}
    except C2paError as error:
        if "ManifestNotFound" in str(error) or "no JUMBF" in str(error):
            return None
        raise


def _manifest(media_type: str) -> dict[str, Any]:
    action = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": {"name": "PhotoFlux", "version": __version__},
    }
    return {
        "claim_generator_info": [{"name": "PhotoFlux", "version": __version__}],
        "format": media_type,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
    }


def open_credentials(keyring: Keyring) -> Credentials:
    """The service's credentials, the same for all its processes; made where there are none yet."""
    label = service_label("secret", "content-credentials")
    while True:
        try:
            stored = json.loads(unseal_bytes(keyring.store.get(NAME), label=label, keyring=keyring))
            return Credentials(stored["chain"], stored["key"])
        except BlobMissing:
            pass
        fresh = make_credentials()
        content = json.dumps({"chain": fresh.chain, "key": fresh.key}).encode()
        try:
            keyring.store.put_new(NAME, seal_bytes(content, label=label, keyring=keyring))
        except BlobExists:
            continue  # another process stored its own first: those are used


def make_credentials() -> Credentials:
    """A signing key with a certificate as C2PA asks for, by an authority whose key is used for this one signature and dropped."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _certificate("PhotoFlux content authority", authority, "PhotoFlux content authority", authority, ca=True)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    leaf = _certificate("PhotoFlux", own, "PhotoFlux content authority", authority, ca=False, usage=usage)
    chain = b"".join(one.public_bytes(serialization.Encoding.PEM) for one in (leaf, root))
    key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Credentials(chain.decode(), key.decode())


def _certificate(name: str, key: Any, issuer: str, signer: Any, *, ca: bool, usage: Any = None) -> Any:
    """An X.509 v3 certificate with the extensions that C2PA 2.1 (14.5) asks for."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    def named(text: str) -> x509.Name:
        parts = ((NameOID.COMMON_NAME, text), (NameOID.ORGANIZATION_NAME, "PhotoFlux"))
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=0 if ca else None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(_key_usage(x509, ca=ca), critical=True)
    )
    if usage is not None:
        builder = builder.add_extension(usage, critical=False)
    return builder.sign(signer, hashes.SHA256())


def _key_usage(x509: Any, *, ca: bool) -> Any:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
