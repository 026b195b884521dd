"""Asks a node over Flight SQL with ADBC's driver and with pyarrow; prints what came, a line each. Arguments: port, CA,
certificate, key."""

import sys

import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as flight

port, *files = sys.argv[1:]
ca, certificate, key = (open(file).read() for file in files)
OPTIONS = {
    "adbc.flight.sql.client_option.tls_root_certs": ca,
    "adbc.flight.sql.client_option.mtls_cert_chain": certificate,
    "adbc.flight.sql.client_option.mtls_private_key": key,
}
uri = f"grpc+tls://localhost:{port}"

with flight_sql.connect(uri, db_kwargs=OPTIONS, autocommit=True) as connection, connection.cursor() as cursor:
    cursor.execute("SELECT id, price FROM market.ticks WHERE id < 3 ORDER BY id")
    print("rows", cursor.fetchall())
    cursor.execute("SELECT count(*) FROM market.ticks WHERE id >= ?".replace("?", "$1"), (5,))
    print("parameter", cursor.fetchone()[0])
    cursor.execute("SELECT * FROM market.ticks")
    table = cursor.fetch_arrow_table()
    print("arrow", table.num_rows, table.schema.field("at").type)
    cursor.executemany("INSERT INTO market.ticks (id, at) VALUES ($1, $2)", [(100, "2023-01-09"), (101, "2023-01-10")])
    cursor.adbc_statement.set_sql_query("INSERT INTO market.ticks (id, at) VALUES (102, '2023-01-11')")
    print("update", cursor.adbc_statement.execute_update())
    cursor.execute("SELECT count(*) FROM market.ticks WHERE id >= 100")
    print("inserted", cursor.fetchone()[0])
    objects = connection.adbc_get_objects(depth="columns", db_schema_filter="market").read_all().to_pylist()
    tables = objects[0]["catalog_db_schemas"][0]["db_schema_tables"]
    print("objects", [(t["table_name"], [c["column_name"] for c in t["table_columns"]]) for t in tables])
    print("schema", connection.adbc_get_table_schema("ticks", db_schema_filter="market").names)
    print("types", connection.adbc_get_table_types())
    print("vendor", connection.adbc_get_info()["vendor_name"])
    try:
        cursor.execute("SELECT nothing FROM market.ticks")
    except adbc_driver_manager.Error as error:
        print("error", "42703" in str(error), type(error).__name__)
    try:
        cursor.execute("DROP TABLE market.ticks")
        cursor.fetchall()
    except adbc_driver_manager.Error as error:
        print("refused", "42501" in str(error))

try:
    bare = {"adbc.flight.sql.client_option.tls_root_certs": ca}
    with flight_sql.connect(uri, db_kwargs=bare, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    print("without certificate: connected")
except adbc_driver_manager.Error:
    print("without certificate: refused")

# The same server to a plain Flight client, which lacks the command's encoding: protobuf, by hand.
def field(number, data):
    size, head = len(data), bytes([number << 3 | 2])
    length = b""
    while size >= 128:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return head + length + bytes([size]) + data


url = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
command = field(1, url) + field(2, field(1, b"SELECT id FROM market.ticks WHERE id < 4 ORDER BY id"))
with flight.FlightClient(uri, tls_root_certs=ca, cert_chain=certificate, private_key=key) as client:
    info = client.get_flight_info(flight.FlightDescriptor.for_command(command))
    print("flight", client.do_get(info.endpoints[0].ticket).read_all().column("id").to_pylist())
