"""A Postgres with NDIF's table of keys, for a server that checks them."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TABLES = """
CREATE TABLE users (user_id uuid PRIMARY KEY, email text);
CREATE TABLE keys (key_id uuid PRIMARY KEY, user_id uuid);
CREATE TABLE user_tags (user_tag_id int PRIMARY KEY, name text);
CREATE TABLE key_user_tag_assignments (key_id uuid, user_tag_id int);
INSERT INTO user_tags VALUES (1, 'trusted');
"""


def binaries() -> Path | None:
    """The folder of Postgres's programs, if they are installed."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@contextmanager
def keys_database(key: str, port: int) -> Iterator[str]:
    """The address of a database in which `key` is the one known key; it must not run as root, so it does not."""
    programs = binaries()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    who: dict[str, int | list[int]] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    user = "11111111-1111-1111-1111-111111111111"
    rows = f"INSERT INTO users VALUES ('{user}', 'me@example.org');\nINSERT INTO keys VALUES ('{key}', '{user}');\n"
    rows += f"INSERT INTO key_user_tag_assignments VALUES ('{key}', 1);\n"
    data = folder / "data"
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **who}
    subprocess.run([programs / "initdb", "-A", "trust", "-U", "ndif", "-D", data], check=True, **quiet)
    alone = [programs / "postgres", "--single", "-D", data, "postgres"]
    subprocess.run(alone, input=(TABLES + rows).encode(), check=True, **quiet)
    words = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL, **quiet)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"postgresql://ndif@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(10)
        shutil.rmtree(folder, ignore_errors=True)
