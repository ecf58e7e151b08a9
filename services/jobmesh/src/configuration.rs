//! docs/configuration.md, made from the definitions of the command line.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

const HEAD: &str = "\
# Configuration

Each option has a flag and an environment variable; the flag takes precedence. These are variables only: `JOBMESH_LOG` (a level, such
as `debug`), `JOBMESH_LOG_FORMAT` (`json`), `JOBMESH_CACHE` (the directory of fetched programs), and the secrets `JOBMESH_KEY`,
`JOBMESH_NATS_PASSWORD`, `JOBMESH_NATS_TOKEN`, `JOBMESH_NATS_NKEY`, `JOBMESH_CLICKHOUSE_PASSWORD` and `JOBMESH_LLM_KEY`, each of which can also
be in a file, named by a flag. Under `jobmesh dev` processors inherit almost the whole environment, other services
only the variables that they need. This page is made from the code: `JOBMESH_BLESS=1 cargo test -p jobmesh` writes it again.
";

/// The page.
fn page() -> String {
    let cli = crate::Cli::command();
    let serve = subcommand(&cli, "serve");
    let services: Vec<&Command> = serve.get_subcommands().collect();
    let is_common = |arg: &Arg| {
        let nats = ["edge", "state", "processor", "metrics"].map(|name| subcommand(serve, name));
        nats.iter()
            .all(|service| service.get_arguments().any(|other| other.get_id() == arg.get_id()))
    };
    let mut page = HEAD.to_owned();
    let common = subcommand(serve, "edge").get_arguments().filter(|arg| is_common(arg));
    section(&mut page, "All services that use NATS", common);
    for service in services {
        let own = service.get_arguments().filter(|arg| !is_common(arg));
        section(&mut page, &format!("jobmesh serve {}", service.get_name()), own);
    }
    section(&mut page, "jobmesh dev", subcommand(&cli, "dev").get_arguments());
    let client = subcommand(&cli, "stats").get_arguments();
    section(&mut page, "Commands for clients", client.filter(|arg| arg.get_env().is_some()));
    page
}

fn subcommand<'a>(command: &'a Command, name: &str) -> &'a Command {
    command.find_subcommand(name).unwrap_or_else(|| panic!("there is no command {name}"))
}

/// A table of options, each with its variable, default and purpose.
fn section<'a>(page: &mut String, title: &str, args: impl Iterator<Item = &'a Arg>) {
    // Writing to a string cannot fail, here and below.
    let _ = write!(page, "\n## {title}\n\n| flag | variable | default | |\n|---|---|---|---|\n");
    for arg in args.filter(|arg| arg.get_long().is_some() && !arg.is_hide_set()) {
        let flag = format!("`--{}`", arg.get_long().unwrap_or_default());
        let code = |text: String| if text.is_empty() { text } else { format!("`{text}`") };
        let variable = arg.get_env().map(|env| env.to_string_lossy().into_owned());
        let defaults: Vec<_> =
            arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string);
        let values = arg.get_possible_values();
        let values: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        let is_choice = arg.get_action().takes_values() && !values.is_empty();
        let choice = if is_choice { format!(" ({})", values.join(", ")) } else { String::new() };
        let help = (help.unwrap_or_default() + &choice).replace('\n', " ").replace('|', "\\|");
        let (variable, defaults) = (code(variable.unwrap_or_default()), code(defaults.join(", ")));
        let _ = writeln!(page, "| {flag} | {variable} | {defaults} | {help} |");
    }
}

#[test]
fn page_of_the_configuration_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
    let page = page();
    if std::env::var_os("JOBMESH_BLESS").is_some() {
        std::fs::write(path, &page).expect("docs can be written");
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == page,
        "docs/configuration.md does not match the code: JOBMESH_BLESS=1 cargo test -p jobmesh \
         writes it again"
    );
}
