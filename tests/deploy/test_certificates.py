"""The certificates of a fleet's machines: names and lifetimes."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from deploy.certificates import MACHINE_DAYS, authority, is_current, issue

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NAMES = ["10.0.0.9", "box"]


@pytest.fixture
def certificates() -> tuple[x509.Certificate, x509.Certificate]:
    """An authority, and a machine's certificate."""
    ca_key, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = authority(ca_key, NOW)
    return ca, issue(ca, ca_key, own, NAMES, NOW)


@pytest.mark.parametrize(
    ("name", "days", "trusted"),
    [
        (x509.IPAddress(ipaddress.ip_address("10.0.0.9")), 0, True),
        (x509.DNSName("box"), MACHINE_DAYS - 1, True),
        (x509.IPAddress(ipaddress.ip_address("10.0.0.10")), 0, False),
        (x509.DNSName("box"), MACHINE_DAYS + 1, False),
    ],
    ids=["by address", "by name, on its last day", "another machine", "expired"],
)
def test_a_machines_certificate_is_valid_for_its_names_and_lifetime_only(
    certificates: tuple[x509.Certificate, x509.Certificate],
    name: x509.IPAddress | x509.DNSName,
    days: int,
    trusted: bool,
) -> None:
    ca, certificate = certificates
    at = NOW + datetime.timedelta(days=days)
    verifier = PolicyBuilder().store(Store([ca])).time(at).build_server_verifier(name)

    if trusted:
        assert verifier.verify(certificate, [])
    else:
        with pytest.raises(VerificationError):
            verifier.verify(certificate, [])


def test_a_certificate_is_renewed_near_its_end_or_for_a_new_address(
    certificates: tuple[x509.Certificate, x509.Certificate],
) -> None:
    _, certificate = certificates

    assert is_current(certificate, NAMES, NOW)
    assert is_current(certificate, NAMES, NOW + datetime.timedelta(days=200))
    assert not is_current(certificate, NAMES, NOW + datetime.timedelta(days=300))
    assert not is_current(certificate, ["10.0.0.8", "box"], NOW)
