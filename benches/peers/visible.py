"""How long after a commit's answer its row is readable on a replica, beside PostgreSQL's logical replication in turn.

    python3 -m venv v && v/bin/pip install "psycopg[binary]"
    cargo build --release && v/bin/python benches/peers/visible.py target/release/tailrace

Two nodes on loopback, one row per durable commit, then one client asks the replica: `CALL wait_for` here, SELECT again and
again there. Once with the next commit at once, once after a rest in which everything falls asleep. Needs root and
PostgreSQL's server (Debian: postgresql-15); without it only ours is measured.
"""

import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import psycopg

ROUNDS, COMMITS, WARM = 5, 500, 100
RESTS = (0, 0.003)  # seconds


class Tailrace:
    def __init__(self, root, binary):
        self.binary, self.root, self.nodes, self.seq = binary, root, [], 2
        try:
            ports = self.start(
                "primary", 2, ["replication.primary.max_replicas=1", "listen.replication=127.0.0.1:0"], []
            )
            address = f'replication.replica.primary_addresses=["127.0.0.1:{ports["replication"]}"]'
            replica_ports = self.start("replica", 1, [address], ["--ca", str(root / "primary" / "tls")])
            self.primary, self.replica = self.connect(ports), self.connect(replica_ports)
            self.primary.execute("CREATE DATABASE market")
            self.primary.execute("CALL set_database_for_cluster_replication('market', true)")
            self.primary.execute("CREATE TABLE market.ping (id INTEGER NOT NULL)")
            while not self.replica.execute("SELECT 1 FROM system.databases WHERE name = 'market' AND seq = 2").fetchone():
                time.sleep(0.01)
        except BaseException:
            self.stop()
            raise

    def start(self, name, listeners, flags, init):
        """A node of its own folder; returns the port of each listener."""
        subprocess.run([self.binary, "init", str(self.root / name), *init], check=True, stdout=subprocess.DEVNULL)
        command = [self.binary, "serve", "--config", str(self.root / name / "tailrace.toml")]
        for flag in ["listen.pgwire=127.0.0.1:0", *flags]:
            command += ["--set", flag]
        log = self.root / f"{name}.log"
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(log, "w"), text=True)
        self.nodes.append(node)
        ports = {}
        while len(ports) < listeners:
            line = node.stdout.readline()
            if not line:
                raise SystemExit(f"{name} ended: {log.read_text()}")
            if found := re.match(r"listening (\w+) .*:(\d+)", line):
                ports[found[1]] = int(found[2])
        return ports

    @staticmethod
    def connect(ports):
        return psycopg.connect(f"host=127.0.0.1 port={ports['pgwire']} user=x dbname=tailrace", autocommit=True)

    def commit(self):
        self.seq += 1
        self.primary.execute("INSERT INTO market.ping VALUES (%s)", (self.seq,))

    def wait(self):
        self.replica.execute("CALL wait_for('market', %s, timeout => 60000)", (self.seq,))

    def stop(self):
        for node in self.nodes:
            node.terminate()
            node.wait()


class Postgres:
    BIN = next(iter(sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)

    def __init__(self, root):
        self.root, self.id, self.started = root, 0, []
        shutil.chown(root, "postgres")
        try:
            self.primary, self.replica = self.start("primary", 55442), self.start("replica", 55443)
            for node in (self.primary, self.replica):
                node.execute("CREATE TABLE ping (id int PRIMARY KEY)")
            self.primary.execute("CREATE PUBLICATION p FOR TABLE ping")
            self.replica.execute(
                "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1 port=55442 user=postgres dbname=postgres' PUBLICATION p"
            )
            time.sleep(2)
        except BaseException:
            self.stop()
            raise

    def run(self, *command):
        command = ["runuser", "-u", "postgres", "--", *map(str, command)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start(self, name, port):
        folder = self.root / name
        self.run(self.BIN / "initdb", "-D", folder, "-A", "trust", "--no-sync")
        with open(folder / "postgresql.conf", "a") as file:
            file.write(f"port={port}\nlisten_addresses='127.0.0.1'\nunix_socket_directories=''\nwal_level=logical\n")
        self.run(self.BIN / "pg_ctl", "-D", folder, "-l", self.root / f"{name}.log", "-w", "start")
        self.started.append(folder)
        return psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres", autocommit=True)

    def commit(self):
        self.id += 1
        self.primary.execute("INSERT INTO ping VALUES (%s)", (self.id,))

    def wait(self):
        while not self.replica.execute("SELECT 1 FROM ping WHERE id = %s", (self.id,)).fetchone():
            pass

    def stop(self):
        for folder in self.started:
            self.run(self.BIN / "pg_ctl", "-D", folder, "-m", "immediate", "stop")


def measure(system, rest):
    """Quantiles in milliseconds: commits' p50 and p99, then those of what follows until the row is readable."""
    commits, visible = [], []
    for number in range(WARM + COMMITS):
        time.sleep(rest) if rest else None
        began = time.perf_counter()
        system.commit()
        answered = time.perf_counter()
        system.wait()
        if number >= WARM:
            commits.append(1e3 * (answered - began))
            visible.append(1e3 * (time.perf_counter() - answered))
    return [sorted(values)[COMMITS * share // 100] for values in (commits, visible) for share in (50, 99)]


def main(tailrace):
    with tempfile.TemporaryDirectory() as ours, tempfile.TemporaryDirectory() as theirs:
        systems = {}
        try:
            systems["tailrace"] = Tailrace(pathlib.Path(ours), tailrace)
            if Postgres.BIN:
                systems["postgres"] = Postgres(pathlib.Path(theirs))
            found = {(rest, name): [] for rest in RESTS for name in systems}
            for _ in range(ROUNDS):
                for rest, name in found:
                    found[rest, name].append(measure(systems[name], rest))
            for (rest, name), rounds in found.items():
                p50, p99, visible50, visible99 = map(statistics.median, zip(*rounds))
                each = ", ".join(f"{values[3]:.2f}" for values in rounds)
                print(f"{name:8} rest {rest * 1e3:.0f} ms: commit p50 {p50:.2f} p99 {p99:.2f} ms; ", end="")
                print(f"readable after p50 {visible50:.2f} p99 {visible99:.2f} ms (p99 of each round: {each})")
        finally:
            for system in systems.values():
                system.stop()


main(str(pathlib.Path(sys.argv[1]).resolve()))
