"""What the parameters of a PostgreSQL URL do on a server that accepts only TLS connections."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import text

from eventmesh.errors import Unreachable, UsageError
from eventmesh.persistence.database import Database
from eventmesh.testing.servers import Server, ServerMissing, serve
from eventmesh.testing.servers.postgres_server import execute
from eventmesh.testing.servers.processes import free_port
from tests.integration.certificates import make_certificates
from tests.integration.conftest import Project, until
from tests.integration.redis_nodes import missing

Url = Callable[..., str]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for a server that is named localhost, but not 127.0.0.1."""
    return make_certificates(tmp_path_factory.mktemp("certificates"), "DNS:localhost")


@pytest.fixture(scope="module")
def server(certificates: Path) -> Iterator[Server]:
    try:
        with serve("postgres", way="private") as server:
            require_tls(server, certificates)
            yield server
    except ServerMissing as error:
        missing(str(error))


def require_tls(server: Server, certificates: Path) -> None:
    def ask(statement: str) -> str | None:
        return asyncio.run(execute(server.url, statement))

    data = Path(str(ask("SHOW data_directory")))
    for name in ("server.pem", "server.key"):
        copy = Path(shutil.copy(certificates / name, data))
        copy.chmod(0o600)
        os.chown(copy, data.stat().st_uid, data.stat().st_gid)
    (data / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
    for setting in ("ssl_cert_file = 'server.pem'", "ssl_key_file = 'server.key'", "ssl = on"):
        ask(f"ALTER SYSTEM SET {setting}")
    ask("SELECT pg_reload_conf()")
    until(lambda: ask("SHOW ssl") == "on", "TLS")


@pytest.fixture
def url(server: Server) -> Url:
    """Builds URLs of the server, with one of its names and these parameters."""

    def make(parameters: str, host: str = "localhost", database: str = "postgres") -> str:
        parts = urlsplit(server.url)
        place = f"{parts.username}:{parts.password}@{host}:{parts.port}"
        return urlunsplit(("postgresql", place, f"/{database}", parameters, ""))

    return make


async def encryption(url: str) -> str:
    """The TLS version of a connection to this URL; "" if it is not encrypted."""
    database = Database(url, service="bank")
    try:
        await database.connect()
        async with database.connection() as connection:
            asked = text("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            return str(await connection.scalar(asked) or "")
    finally:
        await database.close()


OTHER_NAME = "127.0.0.1"


@pytest.mark.parametrize(
    ("mode", "ca", "host"),
    [
        ("require", "ca.pem", OTHER_NAME),
        ("verify-ca", "ca.pem", OTHER_NAME),
        ("verify-full", "ca.pem", "localhost"),
    ],
)
async def test_a_server_that_satisfies_the_parameters_is_accepted(
    url: Url, certificates: Path, mode: str, ca: str, host: str
) -> None:
    parameters = f"sslmode={mode}&sslrootcert={certificates / ca}"
    assert (await encryption(url(parameters, host))).startswith("TLSv1.")


@pytest.mark.parametrize(
    ("mode", "ca", "host"),
    [
        # As in libpq, `require` verifies the server if an authority is given.
        ("require", "client.pem", "localhost"),
        ("verify-ca", "client.pem", "localhost"),
        ("verify-full", "client.pem", "localhost"),
        ("verify-full", "ca.pem", OTHER_NAME),
    ],
)
async def test_a_server_that_does_not_satisfy_the_parameters_is_rejected(
    url: Url, certificates: Path, mode: str, ca: str, host: str
) -> None:
    parameters = f"sslmode={mode}&sslrootcert={certificates / ca}"
    with pytest.raises(Unreachable, match=r"is not accepted.*EVENTMESH_BANK_DATABASE_URL"):
        await encryption(url(parameters, host))


async def test_sslmode_disable_does_not_encrypt(url: Url) -> None:
    with pytest.raises(Unreachable, match="no encryption"):
        await encryption(url("sslmode=disable"))


@pytest.mark.parametrize("parameters", ["", "sslmode=prefer", "ssl=require", "ssl=true"])
async def test_a_connection_without_an_authority_is_encrypted_too(
    url: Url, parameters: str
) -> None:
    assert (await encryption(url(parameters))).startswith("TLSv1.")


async def test_the_authorities_of_the_machine_do_not_verify_this_server(url: Url) -> None:
    with pytest.raises(Unreachable, match="certificate"):
        await encryption(url("sslrootcert=system"))


async def test_tls_versions_and_the_application_name_are_passed_on(url: Url) -> None:
    asked = "sslmode=require&ssl_max_protocol_version=TLSv1.2&application_name=bank&options=-c%20"
    address = url(f"{asked}search_path%3Dbanking")
    assert await encryption(address) == "TLSv1.2"
    database = Database(address, service="bank")
    try:
        async with database.connection() as connection:
            names = text("SELECT current_setting('application_name'), current_setting(:path)")
            row = (await connection.execute(names, {"path": "search_path"})).one()
            assert tuple(row) == ("bank", "banking")
    finally:
        await database.close()


async def test_hosts_are_tried_in_order(url: Url, server: Server) -> None:
    port = urlsplit(server.url).port
    several = f"127.0.0.1:{free_port()},localhost:{port}"
    address = url("sslmode=require&target_session_attrs=read-write").replace(
        f"localhost:{port}", several
    )
    assert await encryption(address)


async def test_an_unusable_certificate_file_is_an_error_that_names_it(
    url: Url, certificates: Path
) -> None:
    for parameters, said in (
        ("sslrootcert=/nowhere/ca.pem", r"file /nowhere/ca\.pem by sslrootcert"),
        (f"sslrootcert={certificates}/ca.key", "sslrootcert that cannot be used"),
        (f"sslcert={certificates}/client.pem&sslkey={certificates}/ca.key", "a key must belong"),
    ):
        with pytest.raises(UsageError, match=said):
            await encryption(url(f"sslmode=require&{parameters}"))
    with pytest.raises(UsageError, match="a file by sslkey") as caught:
        await encryption(url(f"sslcert={certificates}/client.pem&sslkey=/secret/place.key"))
    assert "/secret" not in str(caught.value)


async def test_an_unverified_connection_to_another_machine_logs_one_warning(
    url: Url, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("eventmesh.persistence.dialects.tcp.is_local", lambda _: False)
    database = Database(url("sslmode=require"), service="bank")
    try:
        async with database.connection(), database.connection():
            pass
    finally:
        await database.close()
    [said] = [each.getMessage() for each in caplog.records if each.name == "eventmesh.database"]
    assert "EVENTMESH_BANK_DATABASE_URL is encrypted, but to whom is not verified" in said
    assert "sslmode=verify-full&sslrootcert=FILE" in said


def test_every_connection_of_a_service_follows_its_url(
    bank: Project, url: Url, certificates: Path, server: Server
) -> None:
    name = "bank_over_tls"
    root = f"sslmode=verify-full&sslrootcert={certificates / 'ca.pem'}"
    client = f"sslcert={certificates / 'client.pem'}&sslkey={certificates / 'client.key'}"
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = url(f"{root}&{client}", database=name)
    bank.run("db", "upgrade", "--create", "bank").succeeds("upgraded to")
    worker = bank.worker()
    bank.python(
        "import asyncio\n"
        "from services.bank.service import Deposit, deposits, service\n"
        "async def main():\n"
        "    async with service:\n"
        "        await deposits.publish(Deposit(owner='ada', cents=1250))\n"
        "asyncio.run(main())\n"
    ).succeeds()
    worker.until_prints("ada has 12.50")
    worker.drain()
    assert [line["event"] for line in worker.lines() if line["level"] != "info"] == []
    assert "client.key" not in worker.err
    plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl"
    assert asyncio.run(execute(server.url, f"{plain} AND client_addr IS NOT NULL")) == 0


def test_a_misspelt_parameter_is_an_error_before_any_connection(bank: Project, url: Url) -> None:
    ended = bank.run("db", "upgrade", "bank", EVENTMESH_BANK_DATABASE_URL=url("ssl_mode=require"))
    assert ended.code == 2
    assert ended.err == (
        "Error: EVENTMESH_BANK_DATABASE_URL has the parameter ssl_mode, which EventMesh does "
        "not know. Did you mean sslmode?\n"
    )
