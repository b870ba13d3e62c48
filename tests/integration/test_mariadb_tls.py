"""What the parameters of a MariaDB URL do on a server that accepts only TLS connections."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text

from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence.database import Database
from eventmesh.testing.servers.answering import Unavailable
from eventmesh.testing.servers.mariadb_server import RECIPE, PrivateMariaDB, execute
from eventmesh.testing.servers.private import private
from eventmesh.testing.servers.recipe import Place
from tests.integration.certificates import make_certificates
from tests.integration.redis_nodes import missing

OTHER_NAME = "127.0.0.1"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for a server that is named localhost, but not 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("certificates"), "DNS:localhost")


@pytest.fixture(scope="module")
def server_url(certificates: Path) -> Iterator[str]:
    class WithTls(PrivateMariaDB):
        def __init__(self, place: Place) -> None:
            super().__init__(place)
            for name in ("ca.pem", "server.pem", "server.key"):
                copy = Path(shutil.copy(certificates / name, place.folder))
                copy.chmod(0o600)
                if place.account is not None:
                    shutil.chown(copy, place.account.user, place.account.group)
            self.options = (
                f"--ssl-ca={place.folder}/ca.pem",
                f"--ssl-cert={place.folder}/server.pem",
                f"--ssl-key={place.folder}/server.key",
            )

    try:
        with private(replace(RECIPE, private=WithTls)) as instance:
            asyncio.run(execute(instance.url, "SET GLOBAL require_secure_transport = ON"))
            yield instance.url
    except Unavailable as error:
        missing(str(error))


async def cipher(server_url: str, parameters: str, host: str = "localhost") -> str:
    """The cipher of a connection to this URL."""
    parts = urlsplit(server_url)
    place = f"{parts.username}:{parts.password}@{host}:{parts.port}"
    url = urlunsplit(("mariadb", place, "/mysql", parameters, ""))
    database = Database(url, service="bank")
    try:
        async with database.connection() as connection:
            found = (await connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'"))).one()
            return str(found[1])
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("parameters", "host"),
    [
        ("ssl=true", OTHER_NAME),
        ("ssl_mode=REQUIRED", OTHER_NAME),
        ("ssl_ca={ca}", "localhost"),
        ("ssl_ca={ca}&ssl_verify_cert=true&ssl_verify_identity=true", "localhost"),
        ("ssl_ca={ca}&ssl_verify_identity=false", OTHER_NAME),
        ("ssl_ca={ca}&ssl_check_hostname=false", OTHER_NAME),
        ("ssl_ca={ca}&ssl_mode=VERIFY_CA", OTHER_NAME),
        ("ssl_ca={ca}&ssl_cert={client}.pem&ssl_key={client}.key", "localhost"),
    ],
)
async def test_a_server_that_satisfies_the_parameters_is_accepted(
    server_url: str, certificates: Path, parameters: str, host: str
) -> None:
    files = {"ca": certificates / "ca.pem", "client": certificates / "client"}
    assert await cipher(server_url, parameters.format(**files), host)


@pytest.mark.parametrize(
    ("parameters", "host"),
    [
        ("ssl_ca={ca}", OTHER_NAME),
        ("ssl_ca={ca}&ssl_mode=VERIFY_IDENTITY", OTHER_NAME),
        ("ssl_ca={stranger}", "localhost"),
        ("ssl_ca={stranger}&ssl_mode=VERIFY_CA", "localhost"),
        # Verified with the authorities that this machine trusts.
        ("ssl_verify_cert=true", "localhost"),
    ],
)
async def test_a_server_that_does_not_satisfy_the_parameters_is_rejected(
    server_url: str, certificates: Path, parameters: str, host: str
) -> None:
    files = {"ca": certificates / "ca.pem", "stranger": certificates / "client.pem"}
    with pytest.raises(Unreachable, match=r"is not accepted.*EVENTMESH_BANK_DATABASE_URL"):
        await cipher(server_url, parameters.format(**files), host)


@pytest.mark.parametrize("parameters", ["", "ssl=false", "ssl_mode=DISABLED"])
async def test_the_server_rejects_a_connection_without_tls(
    server_url: str, parameters: str
) -> None:
    with pytest.raises(Unreachable, match="Access denied"):
        await cipher(server_url, parameters)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("sslca=ca.pem", "Did you mean ssl_ca?"),
        ("ssl_mode=PREFERRED", "the driver does not support"),
        ("ssl_mode=SOME", "Write one of DISABLED"),
        ("ssl=false&ssl_ca=ca.pem", "Keep one of them"),
        ("ssl_ca=ca.pem&ssl_verify_cert=false&ssl_verify_identity=true", "is worth nothing"),
        ("ssl_verify_cert=perhaps", "Write true or false"),
        ("charset=latin1", "always utf8mb4"),
        ("connect_timeout=soon", "Write a whole number"),
        ("ssl_ca=/nowhere/ca.pem", "the file /nowhere/ca.pem by ssl_ca"),
        ("ssl_cert={client}.pem&ssl_key=/secret/key", "a file by ssl_key"),
        ("ssl_cert={client}.pem&ssl_key={ca}.key", "a key must belong"),
    ],
)
def test_an_invalid_parameter_is_named_with_the_fix(
    certificates: Path, parameters: str, said: str
) -> None:
    files = {"ca": certificates / "ca", "client": certificates / "client"}
    with pytest.raises(UsageError) as caught:
        Database(f"mariadb://u:p@h/db?{parameters.format(**files)}", service="bank")
    assert str(caught.value).startswith("EVENTMESH_BANK_DATABASE_URL")
    assert said in str(caught.value)
    assert "/secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [("ssl=true", "to whom is not verified"), ("ssl_ca={ca}", None)],
)
async def test_an_unverified_connection_to_another_machine_logs_a_warning(
    server_url: str,
    certificates: Path,
    parameters: str,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("eventmesh.persistence.dialects.tcp.is_local", lambda _: False)
    await cipher(server_url, parameters.format(ca=certificates / "ca.pem"))
    told = [each.getMessage() for each in caplog.records if each.name == "eventmesh.database"]
    assert len(told) == (said is not None)
    assert all(str(said) in each for each in told)
