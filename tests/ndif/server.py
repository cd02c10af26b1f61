"""A real NDIF server on this machine's CPU: install it, start it on free ports, stop just what was started.

    python tests/ndif/server.py install            once: 3 minutes, 1.7 GB, into ~/.cache/ndif-cpu (or NDIF_CPU)
    python tests/ndif/server.py up [--port N]      30 s, 3 GB of memory; prints the address
    python tests/ndif/server.py down

The server is the published `ndif` wheel, unmodified: API, dispatcher, Ray controller and model actor, with redis and
an S3 store. Several run side by side, each with its own --state folder. Standard library only.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NDIF, TORCH = "ndif==0.1.2", "torch==2.13.0"
DEBS = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1", "libhiredis0.14")
PORTS = ("api", "redis", "s3", "gcs", "objects", "client", "dashboard", "node", "agent", "runtime", "metrics")
FIRST_PORT, LAST_PORT = 24100, 32000  # below Linux's ports for outgoing connections, above Ray's own for clients
READY_SECONDS, STOP_SECONDS = 240, 5
STEADY_SECONDS = 3  # connected for so long: of a dispatcher that was killed redis says so a little longer
LONGEST_STATE = 107 - len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


class CannotRunError(Exception):
    """What this machine lacks, or what is in the way, in one line."""


def default_home() -> Path:
    """Where the server is installed: `NDIF_CPU`, or `~/.cache/ndif-cpu`."""
    return Path(os.environ.get("NDIF_CPU") or Path.home() / ".cache" / "ndif-cpu").expanduser()


def default_state() -> Path:
    """Where the one server of `make ndif` keeps its files; short, because Ray's sockets lie below it."""
    return Path(tempfile.gettempdir()) / f"ndif-{os.getuid()}"


def check_machine() -> None:
    """Raise `CannotRunError` where an NDIF server can't run at all."""
    if sys.platform != "linux":
        raise CannotRunError("an NDIF server needs Linux")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < 6 << 30:
        raise CannotRunError(
            f"an NDIF server needs about 4 GB of memory for itself; this machine has {memory >> 30} GB"
        )


# Installing.


def installed(home: Path) -> bool:
    """Whether `home` holds what this version of the file would install."""
    mark = home / "installed"
    return mark.exists() and mark.read_text() == _recipe() and (home / "venv/bin/ray").exists()


def install(home: Path) -> None:
    """Install into `home`: a venv with the server, and a redis of its own where the machine has none."""
    check_machine()
    if installed(home):
        return
    home.mkdir(parents=True, exist_ok=True)
    python = home / "venv/bin/python"
    if not python.exists():
        base = next((path for name in ("python3.11", "python3") if (path := shutil.which(name))), sys.executable)
        _run([base, "-m", "venv", str(home / "venv")], "needs Python's venv module (apt-get install python3-venv)")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
    network = "needs the package index: check the network, then try again"
    _run([*pip, "install", TORCH], network)
    _run([*pip, "install", "-r", str(HERE / "requirements.txt")], network)
    if subprocess.run([str(python), "-c", "import ndif"], capture_output=True, check=False).returncode:
        # It asks for Python 3.12; its code runs on 3.11, from which the index hides the wheel.
        with tempfile.TemporaryDirectory() as wheels:
            target = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "-d", wheels]
            _run([*pip, "download", *target, NDIF], network)
            (wheel,) = Path(wheels).glob("*.whl")
            _run([*pip, "install", "--ignore-requires-python", "--no-deps", str(wheel)], network)
    if not shutil.which("redis-server") and not (home / "redis/usr/bin/redis-server").exists():
        _unpack_redis(home / "redis")
    (home / "installed").write_text(_recipe())


def _recipe() -> str:
    text = NDIF + TORCH + (HERE / "requirements.txt").read_text()
    return hashlib.sha256(text.encode()).hexdigest()


def _unpack_redis(folder: Path) -> None:
    needs = "needs redis: install redis-server, or apt-get with Debian's packages"
    if not shutil.which("apt-get"):
        raise CannotRunError(f"an NDIF server {needs}")
    with tempfile.TemporaryDirectory() as debs:
        subprocess.run(["apt-get", "update", "-qq"], capture_output=True, check=False)  # without root: old lists may do
        _run(["apt-get", "download", "-qq", *DEBS], needs, cwd=debs)
        for deb in Path(debs).glob("*.deb"):
            _run(["dpkg", "-x", str(deb), str(folder)], needs)


def _run(words: Sequence[str], needs: str, cwd: str | None = None, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["no word"])[-1]
        raise CannotRunError(f"an NDIF server {needs} ({' '.join(words[:6])} …: {last})")


# Running.


class Server:
    """One server: `up`, `down`, and what its tests need to break it.

    Everything it starts has `NDIF_HOME=STATE/home` in its environment or descends from something that has: so `down`
    knows its own whatever became of the one who called `up`.
    """

    def __init__(self, state: Path | None = None, home: Path | None = None) -> None:
        """Name a server by its folder; nothing is started."""
        self.state = (state or default_state()).resolve()
        self.home = (home or default_home()).resolve()
        self.ports: dict[str, int] = {}
        self.settings: dict[str, str] = {}
        self.sandbox = False
        self._note = self.state / "server.json"
        if self._note.exists():
            noted = json.loads(self._note.read_text())
            self.ports, self.settings, self.sandbox = noted["ports"], noted["settings"], noted["sandbox"]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.ports['api']}"

    def up(self, port: int | None = None, settings: dict[str, str] | None = None, sandbox: bool = False) -> str:
        """Start everything and wait until the server serves; its address. In a sandbox every key is an ordinary one."""
        check_machine()
        if not installed(self.home):
            raise CannotRunError(f"no NDIF server is installed in {self.home}: run {Path(__file__).name} install")
        if len(str(self.state)) > LONGEST_STATE:
            raise CannotRunError(f"{self.state} is too long a path for Ray's sockets; pass a shorter --state")
        if self.processes():
            if self.ready() and self.sandbox == sandbox:
                return self.url
            raise CannotRunError(
                f"what was started in {self.state} is not whole, or another kind of server: take it down first"
            )
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.state.stat().st_uid != os.getuid():
            raise CannotRunError(f"{self.state} belongs to someone else; pass another --state")
        if port is not None and not _is_free(port):
            raise CannotRunError(f"port {port} is in use; pass another --port, or none for a free one")
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True)) | ({"api": port} if port else {})
        self.settings, self.sandbox = dict(settings or {}), sandbox
        (self.state / "logs").mkdir(exist_ok=True)
        self._note.write_text(json.dumps({"ports": self.ports, "settings": self.settings, "sandbox": sandbox}))
        try:
            self.start("redis")
            self.start("s3")
            self.start("api")
            self._start_ray()
            self._wait()
        except BaseException:
            self.down()
            raise
        return self.url

    def down(self) -> None:
        """Stop what `up` started, and nothing else; no matter whether anything runs."""
        for sent in (signal.SIGTERM, signal.SIGKILL):
            known: set[int] = set()
            deadline = time.monotonic() + STOP_SECONDS
            while (left := set(self.processes())) and time.monotonic() < deadline:
                for process in left - known:
                    _send(process, signal.SIGCONT)
                    _send(process, sent)
                known |= left
                time.sleep(0.1)
            if not left:
                break
        self._note.unlink(missing_ok=True)

    def start(self, service: str, **settings: str) -> None:
        """Start `redis`, `s3` or `api`."""
        port = self.ports[service]
        words = {
            "redis": ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                      "--daemonize", "no", "--set-proc-title", "no"],
            "s3": ["moto_server", "-H", "127.0.0.1", "-p", str(port)],
            "api": ["gunicorn", "--config", "python:ndif.services.api.gunicorn_conf", "--bind", f"127.0.0.1:{port}",
                    "--access-logfile", str(self.log("access")), "ndif.services.api.app:app"],
        }[service]  # fmt: skip
        environment = self._environment(service) | settings
        with self.log(service).open("ab") as log:
            subprocess.Popen(
                [shutil.which(words[0], path=environment["PATH"]) or words[0], *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def restart(self, *services: str, **settings: str) -> None:
        """Kill `redis`, `s3` or `api` (its worker and dispatcher too), start them again and wait until all is well.

        A redis that died takes with it what the API knew of its compute: restart both.
        """
        while left := [process for process, (name, _) in self.processes().items() if name in services]:
            for process in left:
                _send(process, signal.SIGKILL)
            time.sleep(0.1)
        for service in services:
            self.start(service, **settings)
        self._wait()

    def mend(self) -> None:
        """Wake what is frozen, and start redis and the API again where the server doesn't serve."""
        running = self.processes()
        for process in running:
            _send(process, signal.SIGCONT)
        if not {"redis", "s3", "api"} <= {service for service, _ in running.values()} or not self.ready():
            self.restart("redis", "api")

    def processes(self) -> dict[int, tuple[str, str]]:
        """What runs for this server: process id -> (service, command line)."""
        mark = f"NDIF_HOME={self.state}/home".encode()
        parents: dict[int, int] = {}
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if state == "Z":
                continue
            parents[int(entry.name)] = int(parent)
            if mark in variables:
                names = [name[13:].decode() for name in variables if name.startswith(b"NDIF_SERVICE=")]
                found[int(entry.name)] = (names or ["?"])[0]
        grown = True
        while grown:
            more = {child: found[parent] for child, parent in parents.items() if parent in found and child not in found}
            found |= more
            grown = bool(more)
        found.pop(os.getpid(), None)
        return {process: (service, _command(process)) for process, service in found.items()}

    def find(self, part: str) -> int:
        """The process of the API's `worker`, its `dispatcher`, `redis` or `s3`."""
        for process, (service, command) in self.processes().items():
            if part == "dispatcher" and service == "api" and "spawn_main" in command:
                return process
            if (
                part == "worker"
                and service == "api"
                and all("gunicorn" in c for c in (command, _command(_parent(process))))
            ):
                return process
            if part == service and part in ("redis", "s3"):
                return process
        raise LookupError(f"no {part} runs in {self.state}")

    def actors(self) -> list[int]:
        """The processes of all models that are up."""
        return [
            process
            for process, (_, command) in self.processes().items()
            if command.startswith(("ray::CPUModel", "ray::CPUSandbox"))
        ]

    def deploy(self, model: str, key: str, limit: float) -> None:
        """Bring a model up with a time limit of so many seconds a job; `key` is its name to nnsight."""
        spec = {"checkpoint": model, "model_key": key, "execution_timeout_seconds": limit, "trusted": True}
        words = [
            str(self.home / "venv/bin/python"),
            "-c",
            f"from ndif.cli.lib.deploy import deploy\ndeploy([{spec!r}])",
        ]
        _run(words, "can't deploy", environment=self._environment("deploy"))

    def ready(self) -> bool:
        """Whether the API answers and is connected to its compute."""
        try:
            with urllib.request.urlopen(f"{self.url}/connected", timeout=2) as answer:
                return answer.status == 200
        except (OSError, KeyError, urllib.error.URLError):
            return False

    def log(self, name: str) -> Path:
        """A service's log."""
        return self.state / "logs" / f"{name}.log"

    def _start_ray(self) -> None:
        environment, ports = self._environment("ray"), self.ports
        resources = {"head": 10, "cuda_memory_bytes": 8_000_000_000, "cpu_memory_bytes": 8_000_000_000}
        address = f"127.0.0.2:{ports['gcs']}"  # Ray takes 127.0.0.1 for the machine's outer address
        options = {
            "node-ip-address": "127.0.0.2", "port": ports["gcs"], "num-cpus": 8, "num-gpus": 1,
            "resources": json.dumps(resources), "object-store-memory": 200_000_000,
            "object-manager-port": ports["objects"], "ray-client-server-port": ports["client"],
            "node-manager-port": ports["node"], "dashboard-agent-listen-port": ports["agent"],
            "runtime-env-agent-port": ports["runtime"], "metrics-export-port": ports["metrics"],
            "min-worker-port": 0, "max-worker-port": 0, "include-dashboard": "true",
            "dashboard-host": "127.0.0.1", "dashboard-port": ports["dashboard"], "temp-dir": self.state / "ray",
        }  # fmt: skip
        head = [
            "ray",
            "start",
            "--head",
            "--disable-usage-stats",
            *(f"--{key}={value}" for key, value in options.items()),
        ]
        controller = ["python", "-m", "ndif.services.ray.deployments.controller.controller"]
        for words in (head, controller):
            with self.log("ray").open("ab") as log:
                done = subprocess.run(
                    [str(self.home / "venv/bin" / words[0]), *words[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment | {"RAY_ADDRESS": address} if words is controller else environment,
                    check=False,
                )
            if done.returncode:
                raise CannotRunError(f"{' '.join(words[:3])} failed; see {self.log('ray')}")

    def _wait(self) -> None:
        deadline, since = time.monotonic() + READY_SECONDS, None
        while since is None or time.monotonic() - since < STEADY_SECONDS:
            since = (since or time.monotonic()) if self.ready() else None
            running = {service for service, _ in self.processes().values()}
            for service in ("redis", "s3", "api"):
                if service not in running:
                    raise CannotRunError(f"{service} ended at once; see {self.log(service)}")
            if time.monotonic() > deadline:
                raise CannotRunError(f"the server did not come up in {READY_SECONDS} s; see {self.state}/logs")
            time.sleep(0.3)

    def _environment(self, service: str) -> dict[str, str]:
        ports, venv, redis = self.ports, self.home / "venv", self.home / "redis/usr"
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("NDIF_", "RAY_", "PYTHON"))
        }
        environment |= {
            "PATH": f"{venv}/bin:{redis}/bin:{os.environ.get('PATH', '')}",
            "LD_LIBRARY_PATH": f"{redis}/lib/x86_64-linux-gnu:{os.environ.get('LD_LIBRARY_PATH', '')}",
            "PYTHONPATH": str(HERE),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
            "NDIF_SERVICE": service,
            "NDIF_HOME": f"{self.state}/home",
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}",
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{ports['s3']}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{ports['client']}",
            "NDIF_API_PORT": str(ports["api"]),
            "NDIF_MODEL_IMPORT_PATH": f"ndif_cpu.{'CPUSandboxActor' if self.sandbox else 'CPUModelActor'}",
            "NDIF_SANDBOX_POOL_SIZE": "2",
            "RAY_AUTH_MODE": "disabled",
            "NDIF_CONTROLLER_IMPORT_PATH": "ndif_cpu.CPUControllerActor",
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
            "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
            "NDIF_STATUS_TTL_S": "3",  # else what is up is told anew once a minute
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_worker_niceness": "0",  # Ray's workers would yield to everything else on the machine
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if service == "api":  # nnsight's `.save` on every object breaks the API's classes
            environment["NNSIGHT_CONFIG"] = str(HERE / "api_nnsight.yaml")
        return environment | self.settings


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _send(process: int, sent: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        os.kill(process, sent)


def _is_free(port: int) -> bool:
    for address in ("127.0.0.1", "127.0.0.2"):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on."""
    found: list[int] = []
    for port in random.sample(range(FIRST_PORT, LAST_PORT), LAST_PORT - FIRST_PORT):
        if _is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise CannotRunError("no free ports")


def main() -> int:
    """Install, up or down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["install", "up", "down"])
    parser.add_argument("--home", type=Path, help="where the server is installed (default: ~/.cache/ndif-cpu)")
    parser.add_argument("--state", type=Path, help=f"folder of one running server (default: {default_state()})")
    parser.add_argument("--port", type=int, help="port of the API (default: a free one)")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server's")
    parser.add_argument("--sandbox", action="store_true", help="run everybody's code as NDIF runs an ordinary key's")
    options = parser.parse_args()
    try:
        server = Server(options.state, options.home)
        if options.verb == "install":
            install(server.home)
            sys.stdout.write(f"installed in {server.home}\n")
        elif options.verb == "up":
            settings = dict(pair.partition("=")[::2] for pair in options.env)
            sys.stdout.write(f"{server.up(options.port, settings, options.sandbox)}\n")
        else:
            server.down()
    except CannotRunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
