"""TLS before a server that knows none."""

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from pathlib import Path


def write_certificate(folder: Path) -> Path:
    """Write a certificate of 127.0.0.1, signed by itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    encoding = serialization.Encoding.PEM
    path = folder / "certificate.pem"
    path.write_bytes(
        certificate.public_bytes(encoding)
        + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


def copy(source: socket.socket, target: socket.socket) -> None:
    """Hand on what comes until an end closes."""
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def relay(raw: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Take TLS off a connection, and hand on what comes either way."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(OSError))
        ours = stack.enter_context(context.wrap_socket(stack.enter_context(raw), server_side=True))
        theirs = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        back = threading.Thread(target=copy, args=(theirs, ours))
        back.start()
        copy(ours, theirs)
        back.join()


def serve(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Relay all that come until the listener is shut."""
    threads = []
    with contextlib.suppress(OSError):
        while True:
            raw, _address = listener.accept()
            threads.append(threading.Thread(target=relay, args=(raw, context, port)))
            threads[-1].start()
    for thread in threads:
        thread.join()
