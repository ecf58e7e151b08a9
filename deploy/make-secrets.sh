#!/bin/sh
# Makes the passwords of deploy/compose.yaml and of NATS servers, once: each is random, in a file of its own in deploy/secrets.
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
for user in state edge metrics processor jobmesh route leaf; do
  password=$(random)
  printf '%s' "$password" > "secrets/nats_$user"
  case $user in
    jobmesh) name=JOBMESH_NATS_PASSWORD ;;
    *) name=JOBMESH_NATS_$(echo "$user" | tr a-z A-Z)_PASSWORD ;;
  esac
  printf "%s='\"%s\"'\n" "$name" "$password" >> secrets/nats.env
done
random > secrets/clickhouse
# Containers run as another user than the owner of these files.
chmod 711 secrets
chmod 444 secrets/nats_* secrets/clickhouse
