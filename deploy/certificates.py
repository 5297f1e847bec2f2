"""Makes the fleet's certificate authority and a certificate for each machine, in `tls/` next to the inventory.

Keys are encrypted like the vault. A certificate is renewed when less than a third of its lifetime is left or the
machine's address has changed. The authority, which all machines trust, is valid for ten years.
"""

import datetime
import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from deploy.vault import VaultClosed, decrypt, encrypt, environment

AUTHORITY_DAYS, MACHINE_DAYS = 3650, 365
GROUPS = ("redis", "agents", "routers")
Key = ec.EllipticCurvePrivateKey


def provide(inventory: Path) -> int:
    """Make certificates that are missing or due for renewal. Raises VaultClosed."""
    folder = inventory.resolve().parent / "tls"
    folder.mkdir(exist_ok=True)
    if not (folder / "ca.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, "ca", authority(key, _now()), key)
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    ca_key: Any = None
    for machine, names in machines(inventory).items():
        path = folder / f"{machine}.pem"
        if path.exists() and is_current(x509.load_pem_x509_certificate(path.read_bytes()), names, _now()):
            continue
        if ca_key is None:
            ca_key = serialization.load_pem_private_key(decrypt(folder / "ca.key").encode(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, machine, issue(ca, ca_key, key, names, _now()), key)
        print(f"{path}: made for {', '.join(names)}")
    return 0


def machines(inventory: Path) -> dict[str, list[str]]:
    """Return the names and addresses of the machines that need a certificate. Raises VaultClosed."""
    argv = ["ansible-inventory", "-i", str(inventory), "--list"]
    run = subprocess.run(argv, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode:
        raise VaultClosed(f"`ansible-inventory -i {inventory} --list` failed")
    groups = json.loads(run.stdout)
    variables = groups["_meta"]["hostvars"]
    names = {}
    for name in sorted({h for g in GROUPS for h in groups.get(g, {}).get("hosts", ())}):
        own = variables.get(name, {})
        names[name] = list(dict.fromkeys([own.get("cortex_address") or own.get("ansible_host") or name, name]))
    return names


def authority(key: Key, now: datetime.datetime) -> x509.Certificate:
    """Return a self-signed certificate that may sign others."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cortex: this fleet")])
    builder = _builder(name, name, key, now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def issue(ca: x509.Certificate, ca_key: Key, key: Key, names: list[str], now: datetime.datetime) -> x509.Certificate:
    """Return a machine's certificate for its names and addresses."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[-1][:64])])
    builder = _builder(subject, ca.subject, key, now, MACHINE_DAYS)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(n) for n in names]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return builder.add_extension(identifier, critical=False).sign(ca_key, hashes.SHA256())


def is_current(certificate: x509.Certificate, names: list[str], now: datetime.datetime) -> bool:
    """Return whether a certificate is for these names and has more than a third of its lifetime left."""
    certified = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return set(certified) == {_general_name(n) for n in names} and certificate.not_valid_after_utc - now > lifetime / 3


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    # A machine's clock may be behind this one.
    builder = builder.not_valid_before(now - datetime.timedelta(days=1))
    return builder.not_valid_after(now + datetime.timedelta(days=days))


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(folder: Path, name: str, certificate: x509.Certificate, key: Key) -> None:
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.key").write_text(encrypt(plain.decode()))
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
