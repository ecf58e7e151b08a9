#!/bin/sh
# Makes an archive of a release in target/release-archive: the stripped program, its documents, lists of what it is made of
# (SBOM, CycloneDX), and a checksum.
#
# usage: deploy/release.sh          (in a clean checkout of the commit that is released)
set -eu
cd "$(dirname "$0")/.."
if [ -n "$(git status --porcelain)" ]; then
  echo "the checkout has changes that are not committed" >&2
  exit 1
fi
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
if ! grep -q "^## $version" CHANGELOG.md; then
  echo "CHANGELOG.md has no section \"## $version\"" >&2
  exit 1
fi
if ! command -v cargo-cyclonedx >/dev/null; then
  echo "cargo-cyclonedx is missing: cargo install --locked cargo-cyclonedx@0.5.9" >&2
  exit 1
fi
JOBMESH_COMMIT=$(git rev-parse --short=12 HEAD)
export JOBMESH_COMMIT
cargo build --release --locked --package jobmesh
program=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/jobmesh
name=jobmesh-$version-$(uname -m)-linux
out=target/release-archive
rm -rf "$out"
mkdir -p "$out/$name"
strip -o "$out/$name/jobmesh" "$program"
cp -r README.md CHANGELOG.md LICENSE SECURITY.md docs deploy "$out/$name/"
rm -rf "$out/$name/deploy/secrets"
# Without what differs between two runs: the time, a random number and the path of the checkout.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
cargo cyclonedx --format json --spec-version 1.5 --manifest-path services/jobmesh/Cargo.toml
sed "s#$PWD#.#g" services/jobmesh/jobmesh.cdx.json > "$out/$name/jobmesh.cdx.json"
# The checkout had no changes: these are the lists of all crates.
git clean -fq -- '*.cdx.json'
(cd services/console/web && npm sbom --omit dev --sbom-format cyclonedx --package-lock-only) | node -e '
  const list = JSON.parse(require("fs").readFileSync(0, "utf8"));
  delete list.serialNumber;
  delete list.metadata.timestamp;
  console.log(JSON.stringify(list, null, 2));
' > "$out/$name/console.cdx.json"
found=$("$out/$name/jobmesh" --version)
if [ "$found" != "jobmesh $version ($JOBMESH_COMMIT)" ]; then
  echo "the program says that it is \"$found\"" >&2
  exit 1
fi
# The same files give the same archive.
time=$(git log -1 --format=%cI)
tar --sort=name --mtime="$time" --owner=0 --group=0 --numeric-owner -C "$out" -cf - "$name" | gzip -n > "$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" > "$name.tar.gz.sha256" && cat "$name.tar.gz.sha256")
