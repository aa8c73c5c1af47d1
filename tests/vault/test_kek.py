from __future__ import annotations

import stat
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import LOCAL, KeyFileExists, create_kek, destroy_kek, open_kek
from photoflux.vault.keyring import Keyring
from tests.vault.conftest import new_kek

GOOGLE_KEY = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/photoflux"


def test_a_key_file_wraps_and_unwraps(tmp_path: Path):
    kek = open_kek(new_kek(tmp_path))
    assert kek.decrypt(kek.encrypt(b"keyset", b"bound"), b"bound") == b"keyset"


def test_a_key_file_is_its_owners_alone_and_never_replaced(tmp_path: Path):
    uri = new_kek(tmp_path)
    before = (tmp_path / "kek").read_bytes()
    assert stat.S_IMODE((tmp_path / "kek").stat().st_mode) == 0o600
    with pytest.raises(KeyFileExists, match="exists already"):
        create_kek(uri)
    assert (tmp_path / "kek").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path):
    uri = new_kek(tmp_path)
    (tmp_path / "kek").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        open_kek(uri)


def test_a_missing_and_a_damaged_key_file_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="kek is missing"):
        open_kek(f"{LOCAL}{tmp_path / 'kek'}")
    uri = new_kek(tmp_path)
    (tmp_path / "kek").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        open_kek(uri)


@pytest.mark.parametrize(
    "uri", ["", "kek", "aws-kms://key", f"{LOCAL}relative/kek", f"gcp-kms://{GOOGLE_KEY}/cryptoKeyVersions/1"]
)
def test_other_addresses_are_refused(uri: str):
    with pytest.raises(InputError, match="key-encrypting key"):
        open_kek(uri)


def test_a_cloud_key_is_neither_made_nor_destroyed_here():
    for verb in (create_kek, destroy_kek):
        with pytest.raises(InputError, match="Cloud KMS"):
            verb(f"gcp-kms://{GOOGLE_KEY}")


def test_a_destroyed_key_file_is_gone(tmp_path: Path):
    uri = new_kek(tmp_path)
    destroy_kek(uri)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudKms]:
    """The real client, connected to a server of its protocol in this process."""
    import grpc
    from google.cloud.kms_v1 import KeyManagementServiceClient
    from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport
    from tink.integration import gcpkms

    service = CloudKms()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((service.handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    client = KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))

    def connect(self: gcpkms.GcpKmsClient, key_uri: str | None, credentials_path: str | None) -> None:
        self._client, self._key_uri = client, key_uri or ""
        self._key_name = None

    monkeypatch.setattr(gcpkms.GcpKmsClient, "__init__", connect)
    yield service
    channel.close()
    server.stop(None)


class CloudKms:
    """Encrypt and Decrypt of Cloud KMS: AES-GCM keys by name, until they are destroyed."""

    def __init__(self) -> None:
        from tink import aead, new_keyset_handle

        aead.register()
        self.keys = {GOOGLE_KEY: new_keyset_handle(aead.aead_key_templates.AES256_GCM).primitive(aead.Aead)}

    def handler(self):
        import grpc
        from google.cloud.kms_v1.types import DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse

        def encrypt(request: EncryptRequest, context: grpc.ServicerContext) -> EncryptResponse:
            sealed = self._key(request.name, context).encrypt(request.plaintext, request.additional_authenticated_data)
            return EncryptResponse(name=request.name, ciphertext=sealed)

        def decrypt(request: DecryptRequest, context: grpc.ServicerContext) -> DecryptResponse:
            from tink import TinkError

            try:
                key = self._key(request.name, context)
                return DecryptResponse(plaintext=key.decrypt(request.ciphertext, request.additional_authenticated_data))
            except TinkError:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "decryption failed")
                raise

        def unary(method, asked, told):
            return grpc.unary_unary_rpc_method_handler(
                method, request_deserializer=asked.deserialize, response_serializer=told.serialize
            )

        methods = {
            "Encrypt": unary(encrypt, EncryptRequest, EncryptResponse),
            "Decrypt": unary(decrypt, DecryptRequest, DecryptResponse),
        }
        return grpc.method_handlers_generic_handler("google.cloud.kms.v1.KeyManagementService", methods)

    def _key(self, name: str, context):
        import grpc

        if name not in self.keys:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is destroyed")
        return self.keys[name]


def test_cloud_kms_wraps_keysets_by_the_same_path(cloud: CloudKms, tmp_path: Path):
    keyring = Keyring(FolderStore(tmp_path), f"gcp-kms://{GOOGLE_KEY}")
    version = keyring.create("ada")
    assert Keyring(FolderStore(tmp_path), keyring.kek_uri).primitive("ada", version)
    del cloud.keys[GOOGLE_KEY]
    with pytest.raises(PhotoFluxError, match="cannot be unwrapped"):
        Keyring(FolderStore(tmp_path), keyring.kek_uri).primitive("ada", version)
