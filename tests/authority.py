"""Makes certificates for tests."""

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOOPBACK_NAME = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@dataclass(frozen=True)
class Authority:
    """A certificate authority like a home-made one: without the extensions that newer standards require."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    name: x509.Name

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        authority = cls(folder, ec.generate_private_key(ec.SECP256R1()), common_name("home CA"))
        builder = authority.certificate(authority.name, authority.key)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        authority.write("ca", builder, authority.key)
        return authority

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str, *hosts: x509.GeneralName, days_ago: float = 0) -> tuple[Path, Path]:
        """Write a certificate and its key. It is valid from a day before to a day after the time `days_ago`."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self.certificate(common_name(name), key, days_ago)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        return self.write(name, builder, key)

    def certificate(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, days_ago: float = 0
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC) - dt.timedelta(days=days_ago)
        return x509.CertificateBuilder(
            issuer_name=self.name,
            subject_name=name,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - dt.timedelta(days=1),
            not_valid_after=now + dt.timedelta(days=1),
        )

    def write(
        self, name: str, builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey
    ) -> tuple[Path, Path]:
        certificate, private = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        certificate.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(pem))
        private.write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
        return certificate, private


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
