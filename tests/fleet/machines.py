"""Real Debian hosts on this machine: systemd and sshd in containers, on a bridge that belongs to the test.

The system is made once by debootstrap and kept; each host is an overlay over it, mounted in a mount namespace
of its own and on a leash, so that a killed test leaves no host and no mount behind. What it cannot take along,
a bridge and a folder, the next run clears away.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

CACHE = Path(os.environ.get("CORTEX_FLEET_CACHE", "/var/cache/cortex-test-fleet"))
SUITE = "bookworm"
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "iproute2", "sudo", "nftables", "redis-server",
    "libgomp1", "procps", "prometheus",
)  # fmt: skip
"""What a role would fetch is there already: the bridge has no way out."""
TOOLS = ("debootstrap", "systemd-nspawn", "ssh", "ssh-keygen", "ip", "unshare", "nft")
BRIDGE, NETWORK = "cxtest0", "10.213.7"
GROUP = "cortex-test-fleet-"
BOOT_S = 60.0
MARK = "CORTEX_TEST_FLEET"
"""In the environment of every host's first process; what is after it is the host's name."""
MOUNT = 'mount -t overlay overlay -o "lowerdir=$1,upperdir=$2,workdir=$3" "$4" && shift 4 && exec "$@"'
ENTER = 'for group in $1; do echo $$ > "$group/cgroup.procs" || exit 1; done; shift && exec "$@"'
GROUPS = tuple(
    path
    for path in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd"))
    if (path / "cgroup.procs").exists()
)
"""Where control groups are made, so that each host has a tree of its own: systemd in one would see the others'."""


class HostFailed(Exception):
    """A host did not do what the test needs of it, whatever is under test."""


class Host:
    """One machine: it can be started, rebooted by itself, and have its power cut."""

    def __init__(self, name: str, address: str, folder: Path, base: Path, key: Path) -> None:
        self.name, self.address = name, address
        self._folder, self._base, self._key = folder, base, key
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    def install(self) -> None:
        """Lay the host's own files over the common system."""
        for part in ("upper", "work", "root"):
            (self._folder / part).mkdir(parents=True)
        upper = self._folder / "upper"
        files = {
            "etc/hostname": f"{self.name}\n",
            "etc/systemd/network/10-host0.network": (
                f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\nLinkLocalAddressing=no\n"
            ),
            "root/.ssh/authorized_keys": self._key.with_suffix(".pub").read_text(),
            "etc/machine-id": f"{hash((self.name, os.getpid())) & (1 << 128) - 1:032x}\n",
        }
        for name, text in files.items():
            (upper / name).parent.mkdir(parents=True, exist_ok=True)
            (upper / name).write_text(text)
        (upper / "root").chmod(0o700)
        (upper / "root/.ssh").chmod(0o700)
        units = upper / "etc/systemd/system"
        wants = units / "multi-user.target.wants"
        wants.mkdir(parents=True)
        for unneeded in ("prometheus", "prometheus-node-exporter", "redis-server"):  # they come up with their packages
            (units / f"{unneeded}.service").symlink_to("/dev/null")
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")

    def start(self) -> None:
        """Switch it on; `await_up()` waits for it."""
        overlay = [str(p) for p in (self._base, *(self._folder / p for p in ("upper", "work", "root")))]
        nspawn = [
            "systemd-nspawn", "--quiet", "--directory", str(self._folder / "root"), "--machine", self.name,
            "--register=no", "--keep-unit", f"--network-bridge={BRIDGE}", "--resolv-conf=off", "--timezone=off",
            "--link-journal=no", "--console=pipe", f"--setenv={MARK}={self.name}", "--boot",
        ]  # fmt: skip
        self._starts += 1
        groups = [path / f"{GROUP}{self.name}-{self._starts}" for path in GROUPS]
        for group in groups:
            group.mkdir()
        with (self._folder / "console.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "cortex.platform.process.parent_death", str(os.getpid()),
                    "sh", "-c", ENTER, "enter", " ".join(map(str, groups)),
                    "unshare", "--mount", "sh", "-c", MOUNT, "mount", *overlay, *nspawn,
                ],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def await_up(self) -> None:
        """Wait until it is up and lets us in."""
        until(lambda: self.run("true", check=False).returncode == 0, within_s=BOOT_S, what=f"{self.name} is up")

    def reboot(self) -> None:
        """Have it restart itself. As a container it ends and says so; what starts it anew is here, as a board would."""
        self.run("systemd-run --on-active=0.2 systemctl reboot")
        assert self._process is not None
        self._process.wait(60)
        self.start()

    def cut_power(self) -> None:
        """Kill it, as a power cut would: no process gets to say goodbye."""
        if self._process is not None and self._process.poll() is None:
            _kill(_systems(self.name))  # everything in a container dies with its first process
            self._process.wait(30)
        until(lambda: not _systems(self.name), within_s=30, what=f"{self.name} is off")

    def run(self, command: str, *, check: bool = True, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root."""
        done = subprocess.run(
            ["ssh", *ssh_options(self._key), "-o", "ConnectTimeout=2", f"root@{self.address}", command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise HostFailed(f"{self.name}: `{command}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def says(self, command: str) -> str:
        """Return what a command prints there."""
        return self.run(command).stdout.strip()


class Machines:
    """The hosts of one run, on their bridge. `machines()` makes it."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self._base = folder, base
        self.key = folder / "key"
        self.hosts: dict[str, Host] = {}
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)

    def add(self, name: str) -> Host:
        """Install a host and switch it on."""
        address = f"{NETWORK}.{11 + len(self.hosts)}"
        host = self.hosts[name] = Host(name, address, self.folder / name, self._base, self.key)
        host.install()
        host.start()
        return host


def ssh_options(key: Path) -> list[str]:
    """Return how ssh gets into a host: with the run's own key, remembering nothing."""
    return [
        "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    """A bridge and no hosts yet; at the end neither is left. One run at a time."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        until(lambda: _locked(lock.fileno()), within_s=120, what="another fleet test on this machine is over")
        base = _base()
        _clear_away()
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
        fleet = Machines(folder, base)
        try:
            _ip("link", "add", BRIDGE, "type", "bridge")
            _ip("address", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
            _ip("link", "set", BRIDGE, "up")
            yield fleet
        finally:
            for host in fleet.hosts.values():
                with contextlib.suppress(HostFailed, subprocess.TimeoutExpired):
                    host.cut_power()
            _clear_away()


def _base() -> Path:
    """Return the system all hosts have in common, making it the first time (about three minutes)."""
    base, complete = CACHE / f"{SUITE}-base", CACHE / f"{SUITE}-base" / ".complete"
    if not complete.exists() or complete.read_text() != " ".join(PACKAGES):
        shutil.rmtree(base, ignore_errors=True)
        print(f"fleet: making a Debian {SUITE} in {base}; this is done once", flush=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(base)],
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=900,
        )
        (base / "etc/resolv.conf").unlink(missing_ok=True)
        complete.write_text(" ".join(PACKAGES))
    return base


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _systems(name: str = "") -> list[psutil.Process]:
    """Return the first process of a host, or of all there are."""
    matches = []
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() == "systemd" and (marked := process.environ().get(MARK)) and name in ("", marked):
                matches.append(process)
    return matches


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _clear_away() -> None:
    """Take away what this run, or one that was killed, left: hosts, their control groups and folders, the bridge."""
    _kill(_systems())
    until(lambda: not _systems(), within_s=30, what="hosts of an earlier run are off")
    for group in (result for path in GROUPS for result in path.glob(f"{GROUP}*")):
        for folder, *_ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):  # its last process is still being buried: the next run is for that
                Path(folder).rmdir()
    subprocess.run(["ip", "link", "delete", BRIDGE], stderr=subprocess.DEVNULL, check=False)
    for old in CACHE.glob("run-*"):
        shutil.rmtree(old, ignore_errors=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def until(condition: Callable[[], bool], *, within_s: float, what: str) -> float:
    """Wait for something, looking again and again; return how long it took. Raises HostFailed."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.1)
    raise HostFailed(f"not within {within_s:.0f} s: {what}")
