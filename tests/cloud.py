"""Google Cloud's storage and keys as servers of the tests' own, behind the real clients."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import pytest

GOOGLE_KEY = "projects/p/locations/europe-west4/keyRings/r/cryptoKeys/photoflux"


@contextmanager
def storage_emulator() -> Iterator[str]:
    """Address of a Cloud Storage emulator on loopback."""
    from gcp_storage_emulator.server import create_server
    from gcp_storage_emulator.storage import Storage

    # it would write what it knows of all objects anew with every one of them, for a next start that never comes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Storage, "_write_config_to_file", lambda _: None)
        server = create_server("127.0.0.1", 0, in_memory=True)
        server.start()
        yield f"http://127.0.0.1:{server._api._httpd.server_port}"
        server.stop()


def storage_client(emulator: str) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud.storage import Client

    return Client(project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": emulator})


def new_bucket(emulator: str) -> str:
    """Name of a new bucket."""
    name = f"photoflux-{uuid.uuid4()}"
    storage_client(emulator).create_bucket(name)
    return name


class CloudKms:
    """Encrypt and Decrypt of Cloud KMS: AES-GCM keys by name, until they are destroyed."""

    def __init__(self) -> None:
        from tink import aead, new_keyset_handle

        aead.register()
        self.keys = {GOOGLE_KEY: new_keyset_handle(aead.aead_key_templates.AES256_GCM).primitive(aead.Aead)}

    def handler(self) -> Any:
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

        methods = {
            "Encrypt": unary(encrypt, EncryptRequest, EncryptResponse),
            "Decrypt": unary(decrypt, DecryptRequest, DecryptResponse),
        }
        return grpc.method_handlers_generic_handler("google.cloud.kms.v1.KeyManagementService", methods)

    def _key(self, name: str, context: Any) -> Any:
        import grpc

        if name not in self.keys:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is destroyed")
        return self.keys[name]


def unary(method: Any, asked: Any, told: Any) -> Any:
    """A method of a gRPC service, by the types that it is asked with and tells."""
    import grpc

    return grpc.unary_unary_rpc_method_handler(
        method, request_deserializer=asked.deserialize, response_serializer=told.serialize
    )


@contextmanager
def grpc_served(handler: Any) -> Iterator[Any]:
    """A channel to a server of one service."""
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None)


@contextmanager
def cloud_kms() -> Iterator[CloudKms]:
    """Tink's own client of Cloud KMS, connected to a server in this process."""
    from google.cloud.kms_v1 import KeyManagementServiceClient
    from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport
    from tink.integration import gcpkms

    service = CloudKms()
    with grpc_served(service.handler()) as channel, pytest.MonkeyPatch.context() as patch:
        client = KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=channel))

        def connect(self: gcpkms.GcpKmsClient, key_uri: str | None, credentials_path: str | None) -> None:
            self._client, self._key_uri = client, key_uri or ""
            self._key_name = None

        patch.setattr(gcpkms.GcpKmsClient, "__init__", connect)
        yield service
