#!/usr/bin/env bash
# Brings a day's rows from one cluster to another that it has no connection to: backup at A, rsync, restore at B.
#
#   PSQL_A="psql -h siteA -p 5442" PSQL_B="psql -h siteB -p 5442" \
#       docs/offline_synchronization.sh market.bars datetime 2023-01-08 /backups/outgoing user@siteB:/backups/incoming /backups/incoming
#
# table, its time column, the day, A's folder, where rsync brings it, and the same place as B names it. A's folder must lie
# under [files] allow of A, B's under that of B; B has a database of the same name. Run again, it changes nothing.
set -euo pipefail

if [ $# -ne 6 ]; then
    sed -n '2,9p' "$0" >&2
    exit 2
fi
table=$1 column=$2 day=$3 outgoing=$4 carried_to=$5 incoming=$6

statement() { # psql command, statement
    $1 --no-psqlrc --quiet --set ON_ERROR_STOP=1 --command "$2"
}

# 1. At A: the day's rows, consistent at one position.
statement "$PSQL_A" "CALL backup('$outgoing', 'SELECT * FROM $table
    WHERE $column >= TIMESTAMP ''$day'' AND $column < TIMESTAMP ''$day'' + INTERVAL ''1 day''')"

# 2. Over the wire, or on a disk in a bag. Manifests last: a backup is there once its manifest is.
rsync --archive --exclude /backups --exclude /running --exclude /.staging "$outgoing/" "$carried_to/"
rsync --archive "$outgoing/backups" "$carried_to/"

# 3. At B: checked, then restored.
bad=$(statement "$PSQL_B --tuples-only --no-align" "SELECT * FROM check_backup('$incoming')")
if [ -n "$bad" ]; then
    printf 'the backup arrived damaged:\n%s\n' "$bad" >&2
    exit 1
fi
statement "$PSQL_B" "CALL restore('$incoming', table => '$table', create => true, mode => 'replace')"

# 4. Neither side keeps more than a week of them.
statement "$PSQL_A" "CALL prune_backups('$outgoing', keep => 7)"
statement "$PSQL_B" "CALL prune_backups('$incoming', keep => 7)"
