"""How long after a commit's answer it is readable on a replica: two nodes on loopback, one row per commit.

    python3 -m venv v && v/bin/pip install "psycopg[binary]"
    cargo build --release && v/bin/python benches/peers/visible.py target/release/tailrace

A client of the replica waits in `CALL wait_for`, a client of the primary commits; both clocks are this process's. Prints
milliseconds over 500 commits, after 100 that do not count.
"""

import pathlib
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time

import psycopg

WARM, COUNTED = 100, 500
PAUSE = 0.003  # seconds, so that the waiting client has arrived


def start(tailrace, root, name, listeners, flags, ca=None):
    """A node of its own folder; returns its process and the port of each listener."""
    init = [tailrace, "init", str(root / name)] + (["--ca", str(root / ca / "tls")] if ca else [])
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    command = [tailrace, "serve", "--config", str(root / name / "tailrace.toml"), "--set", "listen.pgwire=127.0.0.1:0"]
    for flag in flags:
        command += ["--set", flag]
    log = open(root / f"{name}.log", "w")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    ports = {}
    while len(ports) < listeners:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} ended: " + (root / f"{name}.log").read_text())
        if found := re.match(r"listening (\w+) .*:(\d+)", line):
            ports[found[1]] = int(found[2])
    return process, ports


def connect(ports):
    return psycopg.connect(f"host=127.0.0.1 port={ports['pgwire']} user=x dbname=tailrace", autocommit=True)


def measure(primary, replica):
    primary.execute("CREATE DATABASE market")
    primary.execute("CALL set_database_for_cluster_replication('market', true)")
    primary.execute("CREATE TABLE market.ping (id INTEGER NOT NULL)")
    while not replica.execute("SELECT 1 FROM system.databases WHERE name = 'market' AND seq = 2").fetchone():
        time.sleep(0.01)
    wanted, seen = queue.Queue(), queue.Queue()

    def wait():
        while (seq := wanted.get()) is not None:
            replica.execute(f"CALL wait_for('market', {seq}, timeout => 60000)")
            seen.put(time.perf_counter())

    threading.Thread(target=wait, daemon=True).start()
    visible, commits = [], []
    for seq in range(3, 3 + WARM + COUNTED):
        wanted.put(seq)
        time.sleep(PAUSE)
        began = time.perf_counter()
        primary.execute(f"INSERT INTO market.ping VALUES ({seq})")
        answered = time.perf_counter()
        commits.append(answered - began)
        visible.append(seen.get() - answered)
    wanted.put(None)
    for what, values in (("commit", commits), ("readable on the replica after that", visible)):
        values = sorted(1e3 * value for value in values[WARM:])
        p50, p99 = values[COUNTED // 2], values[COUNTED * 99 // 100]
        print(f"{what}: p50 {p50:.2f} ms, p99 {p99:.2f} ms, most {values[-1]:.2f} ms")


def main(tailrace):
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        nodes = []
        try:
            primary, ports = start(
                tailrace, root, "primary", 2, ["replication.primary.max_replicas=1", "listen.replication=127.0.0.1:0"]
            )
            nodes.append(primary)
            address = f'replication.replica.primary_addresses=["127.0.0.1:{ports["replication"]}"]'
            replica, replica_ports = start(tailrace, root, "replica", 1, [address], ca="primary")
            nodes.append(replica)
            measure(connect(ports), connect(replica_ports))
        finally:
            for node in nodes:
                node.terminate()
                node.wait()


main(str(pathlib.Path(sys.argv[1]).resolve()))
