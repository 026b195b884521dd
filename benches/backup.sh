#!/usr/bin/env bash
# Backup and restore of the tutorial's rows in MB/s, beside cp and fsync of the same files, alternating.
#
#   benches/backup.sh target/release/tailrace [rows, 1210000] [rounds, 7]
#
# Prints a line per round and the medians. Needs psql. Everything lies in one temporary folder.
set -euo pipefail

binary=$(realpath "$1")
rows=${2:-1210000}
rounds=${3:-7}
work=$(mktemp -d)
trap 'kill "$node" 2>/dev/null || true; rm -rf "$work"' EXIT

"$binary" init "$work/node" >/dev/null
mkdir "$work/files"
"$binary" serve --config "$work/node/tailrace.toml" --set listen.pgwire=127.0.0.1:0 \
    --set "files.allow=[\"$work/files\"]" >"$work/out" 2>"$work/log" &
node=$!
until grep -q 'listening pgwire' "$work/out"; do
    kill -0 "$node"
    sleep 0.1
done
port=$(sed -n 's/^listening pgwire .*://p' "$work/out")
export PGOPTIONS="-c client_min_messages=warning"
sql() { psql -h 127.0.0.1 -p "$port" -U bench -d tailrace -qAt -v ON_ERROR_STOP=1 -c "$1"; }

sql 'CREATE DATABASE market'
sql 'CREATE TABLE market.bars (security_id VARCHAR, datetime TIMESTAMP(0), pre_close DOUBLE PRECISION,
    open DOUBLE PRECISION, high DOUBLE PRECISION, low DOUBLE PRECISION, last DOUBLE PRECISION, volume INT,
    amount DOUBLE PRECISION) PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)'
# 242 minutes a day of 5,000 securities, and more days where there are more rows.
sql "INSERT INTO market.bars SELECT lpad(CAST(n / 242 % 5000 AS VARCHAR), 6, '0'),
    CAST(1673136000 + 34200 + 60 * (n % 242) + 86400 * (n / 1210000) AS TIMESTAMP(0)),
    round(random() * 10000) / 100 AS a, round(random() * 10000) / 100 AS b, round(random() * 10000) / 100 AS c,
    round(random() * 10000) / 100 AS d, round(random() * 10000) / 100 AS e, CAST(random() * 10000 AS INT),
    random() * 1000000 FROM generate_series(0, $rows - 1) AS t(n)"
sql 'CALL flush()'

# Nanoseconds from a statement to its answer; psql's own start would be half of a small backup.
timed() {
    psql -h 127.0.0.1 -p "$port" -U bench -d tailrace -qAt -v ON_ERROR_STOP=1 -c '\timing' -c "$1" |
        awk '/^Time:/ { printf "%d", $2 * 1000000 }'
}
now() { date +%s%N; }
bytes=$(find "$work/node" -name '*.parquet' -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
files=$(find "$work/node" -name '*.parquet' | wc -l)
echo "$rows rows, $files files, $bytes bytes"
rate() { awk -v bytes="$bytes" -v ns="$1" 'BEGIN { printf "%.1f", bytes * 1000 / ns }'; }

copied() { # from, to: every file and folder synced
    cp -r "$1" "$2"
    find "$2" -exec sync {} +
}

for round in $(seq "$rounds"); do
    rm -rf "$work/copy"
    begun=$(now); copied "$work/node/data/store/market" "$work/copy"; cp_ns=$(($(now) - begun))
    rm -rf "$work/files/backups"
    backup_ns=$(timed "CALL backup('$work/files/backups')")
    restore_ns=$(timed "CALL restore('$work/files/backups', database => 'market', into => 'copy', create => true)")
    sql 'DROP DATABASE copy' >/dev/null
    echo "$(rate $cp_ns) $(rate $backup_ns) $(rate $restore_ns)"
done | tee "$work/rounds"
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
for column in 1:cp 2:backup 3:restore; do
    echo "${column#*:}: $(cut -d' ' -f"${column%:*}" "$work/rounds" | median) MB/s (median)"
done
