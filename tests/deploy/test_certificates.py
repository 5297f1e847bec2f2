"""The certificates of a fleet's machines: whom they are for, and for how long."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from deploy.certificates import MACHINE_DAYS, authority, issued, stands

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
NAMES = ["10.0.0.9", "box"]


@pytest.fixture
def made() -> tuple[x509.Certificate, x509.Certificate]:
    """An authority, and what it issued for a machine."""
    signing, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = authority(signing, NOW)
    return ca, issued(ca, signing, own, NAMES, NOW)


@pytest.mark.parametrize(
    ("name", "days", "believed"),
    [
        (x509.IPAddress(ipaddress.ip_address("10.0.0.9")), 0, True),
        (x509.DNSName("box"), MACHINE_DAYS - 1, True),
        (x509.IPAddress(ipaddress.ip_address("10.0.0.10")), 0, False),
        (x509.DNSName("box"), MACHINE_DAYS + 1, False),
    ],
    ids=["by address", "by name, on its last day", "another machine", "too old"],
)
def test_who_believes_the_authority_believes_the_machine_and_nobody_else(
    made: tuple[x509.Certificate, x509.Certificate],
    name: x509.IPAddress | x509.DNSName,
    days: int,
    believed: bool,
) -> None:
    ca, certificate = made
    at = NOW + datetime.timedelta(days=days)
    verifier = PolicyBuilder().store(Store([ca])).time(at).build_server_verifier(name)

    if believed:
        assert verifier.verify(certificate, [])
    else:
        with pytest.raises(VerificationError):
            verifier.verify(certificate, [])


def test_it_is_made_anew_when_it_grows_old_or_the_machine_moves(
    made: tuple[x509.Certificate, x509.Certificate],
) -> None:
    _, certificate = made

    assert stands(certificate, NAMES, NOW)
    assert stands(certificate, NAMES, NOW + datetime.timedelta(days=200))
    assert not stands(certificate, NAMES, NOW + datetime.timedelta(days=300))
    assert not stands(certificate, ["10.0.0.8", "box"], NOW)
