"""Speaks with a node as psycopg does: prints what came, a line each. Arguments: port."""

import datetime
import sys
import threading
import time

import psycopg

port = sys.argv[1]
conninfo = f"host=127.0.0.1 port={port} user=x dbname=market"

with psycopg.connect(conninfo, autocommit=True) as connection:
    connection.execute("INSERT INTO ticks (id, at, price) VALUES (%s, %s, %s)", (1, datetime.datetime(2023, 1, 9, 9, 30), 1.5))
    # From the sixth time on a statement is prepared on the server.
    for number in range(2, 12):
        connection.execute("INSERT INTO ticks (id, at, price) VALUES (%s, %s, %s)", (number, datetime.datetime(2023, 1, 9), None))
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO ticks (id, at) VALUES (%s, %s)", [(20, "2023-01-10"), (21, "2023-01-10")])
        print("inserted", cursor.rowcount)
        cursor.execute("SELECT id, at, price FROM ticks WHERE id = %s", (1,))
        print("row", cursor.fetchone(), [column.name for column in cursor.description])
    with connection.cursor(binary=True) as cursor:
        print("binary", cursor.execute("SELECT id, at, price FROM ticks WHERE id = %s", (1,)).fetchone())
        print("nothing", cursor.execute("SELECT FROM ticks WHERE id < %s", (3,)).fetchall())
    print("null", connection.execute("SELECT price FROM ticks WHERE id = 2").fetchone())

    with connection.cursor() as cursor:
        rows = [(number, datetime.datetime(2023, 1, 11), number / 4) for number in range(100, 1_100)]
        cursor.executemany("INSERT INTO ticks (id, at, price) VALUES (%s, %s, %s)", rows)
        print("many", cursor.rowcount)

    # Rows arrive while others are made: one is read, the rest is left.
    with connection.cursor() as cursor:
        rows = cursor.stream("SELECT id FROM ticks ORDER BY id", size=100)
        print("streamed", next(rows))
        rows.close()

    with connection.transaction():
        connection.execute("INSERT INTO ticks (id, at) VALUES (5000, '2023-01-12')")
    try:
        with connection.transaction():
            connection.execute("INSERT INTO ticks (id, at) VALUES (5001, '2023-01-12')")
            connection.execute("SELECT nothing FROM ticks")
    except psycopg.errors.UndefinedColumn as error:
        print("error", type(error).__name__, connection.info.transaction_status.name)
    print("transactions", connection.execute("SELECT count(*) FROM ticks WHERE id >= 5000").fetchone())

    with connection.pipeline() as pipeline:
        cursors = [connection.execute("SELECT %s::bigint * 2", (number,)) for number in range(5)]
        pipeline.sync()
        print("pipeline", [cursor.fetchone()[0] for cursor in cursors])

    print("called", connection.execute("CALL wait_for('market', %s, timeout => 1000)", (1,)).statusmessage)

    threading.Timer(0.5, connection.cancel).start()
    began = time.monotonic()
    try:
        connection.execute("SELECT sum(a.id * b.id + c.id) FROM ticks a, ticks b, ticks c, ticks d")
    except psycopg.errors.QueryCanceled:
        print("cancelled", time.monotonic() - began < 30)
    print("usable", connection.execute("SELECT 1").fetchone())

with psycopg.connect(conninfo) as connection, connection.cursor() as cursor:
    cursor.execute("SHOW synchronous_commit")
    print("setting", cursor.fetchone())
    cursor.execute("SET synchronous_commit = off")
    cursor.execute("INSERT INTO ticks (id, at) VALUES (6000, '2023-01-13')")
with psycopg.connect(conninfo, autocommit=True) as connection:
    print("committed", connection.execute("SELECT count(*) FROM ticks WHERE id = 6000").fetchone())
