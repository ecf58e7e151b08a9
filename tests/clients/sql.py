"""Reads and writes the engine of `jobmesh dev` with clickhouse-connect.

Usage: sql.py <port> <user> <file with its password>
"""

import sys

import clickhouse_connect
from clickhouse_connect.driver.exceptions import DatabaseError

port, user, password_file = sys.argv[1:]
with open(password_file, encoding="utf-8") as file:
    password = file.read().strip()


def client(**options):
    return clickhouse_connect.get_client(
        host="127.0.0.1", port=int(port), username=user, password=password, **options
    )


def refused(action, text):
    try:
        action()
    except DatabaseError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"not refused with {text}")


first = client(database="jobmesh")
second = client()
assert first.query("SELECT count() FROM job_runs").result_rows == [(0,)]
rows = first.query("SELECT {a:Int32} + 1, {s:String}", parameters={"a": 1, "s": "x'y"})
assert rows.result_rows == [(2, "x'y")], rows.result_rows
# The database of one client is not that of the other.
assert second.query("SELECT currentDatabase()").result_rows == [("default",)]

if user == "writer":
    timeout = "SELECT toInt32(getSetting('http_receive_timeout'))"
    settings = {"http_receive_timeout": 77}
    assert first.query(timeout, settings=settings).result_rows == [(77,)]
    assert second.query(timeout).result_rows != [(77,)], "what one sets reaches the other"
    for statement in ["SET max_threads = 1", "USE system", "CREATE TEMPORARY TABLE t (a Int32)"]:
        refused(lambda: first.command(statement), "clients share connections")
    first.command("CREATE TABLE default.written (a Int32, b String) ENGINE = Memory")
    insert = {"column_names": ["a", "b"], "database": "default"}
    refused(lambda: first.insert("written", [[1, "a"]], **insert), "no compressed bodies")
    client(compress=False).insert("written", [[1, "a"], [2, "b"]], **insert)
    assert second.query("SELECT sum(a) FROM written").result_rows == [(3,)]
else:
    refused(lambda: first.command("DROP TABLE job_runs"), "Code: 164")
