//! The configuration files of NATS in deploy/, and the passwords for them.

use std::{fs, process::Command};

use anyhow::Context;
use service::Identity;

use crate::login_broker::DEPLOY;

/// The files that operators start the broker with.
#[test]
fn the_configurations_with_identities_are_valid() -> anyhow::Result<()> {
    let dir = tempfile::TempDir::new()?;
    for file in fs::read_dir(DEPLOY)? {
        let file = file?.path();
        fs::copy(&file, dir.path().join(file.file_name().context("it is a file")?))?;
    }
    // As docs/operations.md says.
    let with_leaf_nodes = "include \"jobmesh-cluster.conf\"\ninclude leafnodes.conf\n";
    fs::write(dir.path().join("with-leaf-nodes.conf"), with_leaf_nodes)?;
    let files = [
        "jobmesh-with-identities.conf",
        "jobmesh-cluster.conf",
        "with-leaf-nodes.conf",
        "leaf.conf",
    ];
    for file in files {
        let mut server = Command::new(fetch::nats_server()?);
        server.args(["-t", "--config"]).arg(dir.path().join(file));
        server.env("JOBMESH_NATS_LEAF_LISTEN", "\"127.0.0.1:0\"");
        server.env("JOBMESH_NATS_LEAF_PASSWORD", "\"12e4\"");
        let hubs = "[\"nats-leaf://leaf:b@host-1:7422\", \"nats-leaf://leaf:b@host-2:7422\"]";
        server.env("JOBMESH_NATS_HUBS", hubs);
        server.env("JOBMESH_NATS_LISTEN", "\"127.0.0.1:0\"");
        server.env("JOBMESH_NATS_STORE", "\"/nowhere\"").env("JOBMESH_NATS_SYNC", "always");
        server.env("JOBMESH_NATS_NAME", "a").env("JOBMESH_NATS_CLUSTER_LISTEN", "\"127.0.0.1:0\"");
        server.env("JOBMESH_NATS_ROUTES", "[\"nats-route://route:b@host:6222\"]");
        server.env("JOBMESH_NATS_ROUTE_PASSWORD", "b").env("JOBMESH_NATS_PASSWORD", "a");
        for identity in Identity::ALL {
            let name = identity.name().to_uppercase();
            server.env(format!("JOBMESH_NATS_{name}_PASSWORD"), "\"12e4\"");
        }
        let checked = server.output()?;
        assert!(checked.status.success(), "{file}: {}", String::from_utf8_lossy(&checked.stderr));
    }
    Ok(())
}

/// The passwords of the compose file: each is one that NATS reads as a text, and that its service gets.
#[test]
fn the_passwords_for_containers_are_those_of_nats() -> anyhow::Result<()> {
    let dir = tempfile::TempDir::new()?;
    let script = dir.path().join("make-secrets.sh");
    std::fs::copy(format!("{DEPLOY}/../make-secrets.sh"), &script)?;
    assert!(Command::new(&script).status()?.success());
    let read = |name: &str| std::fs::read_to_string(dir.path().join("secrets").join(name));
    let variables = read("nats.env")?;
    for identity in Identity::ALL {
        let name = identity.name();
        let password = read(&format!("nats_{name}"))?;
        let line = format!("JOBMESH_NATS_{}_PASSWORD='\"{password}\"'", name.to_uppercase());
        assert!(password.len() == 48 && variables.lines().any(|it| it == line), "{name}");
    }
    let password = read("nats_jobmesh")?;
    assert!(variables.contains(&format!("JOBMESH_NATS_PASSWORD='\"{password}\"'")), "of people");
    assert!(!Command::new(&script).status()?.success(), "it must not replace passwords");
    Ok(())
}
