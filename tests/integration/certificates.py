"""Certificates for the servers and clients of tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.integration.redis_nodes import missing


def make_certificates(folder: Path, names: str) -> Path:
    """Make `ca.pem`, and `server.pem` and `client.pem` that it signed for these names, with their
    keys, in the folder; returns that. Without openssl the test is skipped, or fails where servers
    are required."""
    openssl = shutil.which("openssl")
    if openssl is None:
        missing("no openssl on this machine to make certificates with")

    def run(*arguments: str) -> None:
        subprocess.run([str(openssl), *arguments], cwd=folder, check=True, capture_output=True)  # noqa: S603

    key = ("-newkey", "rsa:2048", "-nodes", "-days", "2")
    authority = ("-addext", "basicConstraints=critical,CA:TRUE")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", *authority)
    for name in ("server", "client"):
        run(
            "req", *key[:3], "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        run(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-out", f"{name}.pem", "-extfile", extensions.name),
        )
    return folder
