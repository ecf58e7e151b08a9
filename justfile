# Shortcuts for https://just.systems; each is a plain command that works without it.

# Lists the recipes.
default:
    @just --list

# Starts a mesh with its data in target/mesh.
dev *arguments:
    cargo run -- dev --data-dir target/mesh {{arguments}}

# Runs all tests, or those whose name contains a text.
test *filter:
    cargo test --workspace -- {{filter}}

# Runs end-to-end tests whose name contains a text.
e2e filter='':
    cargo test -p tests --test e2e -- --test-threads=2 {{filter}}

# Runs simulated worlds.
simulate seeds='10000':
    JOBMESH_SIMULATION_SEEDS={{seeds}} cargo test -p jobmesh-job --test simulation

# Writes docs/openapi.json and docs/configuration.md again.
bless:
    JOBMESH_BLESS=1 cargo test -p jobmesh-edge -p jobmesh --lib

# Measures everything, or some parts: just bench life,singles.
bench parts='':
    cargo run --release -p tests -- bench {{ if parts == '' { '' } else { '--only ' + parts } }}

# Runs the gate.
gate:
    ./.ci/run
