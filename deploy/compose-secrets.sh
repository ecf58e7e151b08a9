#!/bin/sh
# Makes the passwords of deploy/compose.yaml, once: each is random, in a file of its own in deploy/secrets.
set -eu
cd "$(dirname "$0")"
if [ -e secrets ]; then
  echo "deploy/secrets is there already: remove it to make new passwords" >&2
  exit 1
fi
umask 077
mkdir secrets
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# NATS reads a variable as a value of its configuration: the inner quotes keep digits a text.
printf "JOBMESH_NATS_PASSWORD='\"%s\"'\n" "$(random)" > secrets/nats.env
for user in state edge metrics processor; do
  password=$(random)
  printf '%s' "$password" > "secrets/nats_$user"
  printf "JOBMESH_NATS_%s_PASSWORD='\"%s\"'\n" "$(echo "$user" | tr a-z A-Z)" "$password" >> secrets/nats.env
done
random > secrets/clickhouse
# Containers run as another user than the owner of these files.
chmod 711 secrets
chmod 444 secrets/nats_* secrets/clickhouse
