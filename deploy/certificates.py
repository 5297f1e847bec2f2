"""An authority of the fleet's own, and a certificate for each machine, beside the inventory: `tls/`.

Keys are sealed like the vault. A certificate is made anew when a third of its time is left or the machine's address
is another; the authority, which every machine believes, lasts ten years.
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
from deploy.vault import VaultClosed, environment, opened, sealed

AUTHORITY_DAYS, MACHINE_DAYS = 3650, 365
GROUPS = ("redis", "agents", "routers")
Key = ec.EllipticCurvePrivateKey


def provide(inventory: Path) -> int:
    """Make what is missing or grows old. Raises VaultClosed."""
    folder = inventory.resolve().parent / "tls"
    folder.mkdir(exist_ok=True)
    if not (folder / "ca.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, "ca", authority(key, _now()), key)
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    signing: Any = None
    for machine, names in machines(inventory).items():
        path = folder / f"{machine}.pem"
        if path.exists() and stands(x509.load_pem_x509_certificate(path.read_bytes()), names, _now()):
            continue
        if signing is None:
            signing = serialization.load_pem_private_key(opened(folder / "ca.key").encode(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, machine, issued(ca, signing, key, names, _now()), key)
        print(f"{path}: made for {', '.join(names)}")
    return 0


def machines(inventory: Path) -> dict[str, list[str]]:
    """Return the machines that need a certificate, and by which names they are called. Raises VaultClosed."""
    argv = ["ansible-inventory", "-i", str(inventory), "--list"]
    done = subprocess.run(argv, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise VaultClosed(f"`ansible-inventory -i {inventory} --list` failed")
    told = json.loads(done.stdout)
    known = told["_meta"]["hostvars"]
    found = {}
    for name in sorted({h for g in GROUPS for h in told.get(g, {}).get("hosts", ())}):
        own = known.get(name, {})
        found[name] = list(dict.fromkeys([own.get("cortex_address") or own.get("ansible_host") or name, name]))
    return found


def authority(key: Key, now: datetime.datetime) -> x509.Certificate:
    """Return a certificate that may sign others, signed by itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cortex: this fleet")])
    made = _begun(name, name, key, now, AUTHORITY_DAYS)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    made = made.add_extension(_usage(signs=True), critical=True)
    return made.sign(key, hashes.SHA256())


def issued(ca: x509.Certificate, signing: Key, key: Key, names: list[str], now: datetime.datetime) -> x509.Certificate:
    """Return a machine's certificate for its names and addresses."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[-1][:64])])
    made = _begun(subject, ca.subject, key, now, MACHINE_DAYS)
    made = made.add_extension(x509.SubjectAlternativeName([_named(n) for n in names]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(_usage(signs=False), critical=True)
    made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    return made.add_extension(identifier, critical=False).sign(signing, hashes.SHA256())


def stands(certificate: x509.Certificate, names: list[str], now: datetime.datetime) -> bool:
    """Whether a certificate is for these names and has more than a third of its time left."""
    given = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return set(given) == {_named(n) for n in names} and certificate.not_valid_after_utc - now > lasts / 3


def _begun(
    subject: x509.Name, issuer: x509.Name, key: Key, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number())
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    # A machine's clock may be behind ours.
    return made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=days))


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _named(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(folder: Path, name: str, certificate: x509.Certificate, key: Key) -> None:
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.key").write_text(sealed(plain.decode()))
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
