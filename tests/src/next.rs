//! The program whose messages have a newer version, see the feature `next-version`.

fn main() -> std::process::ExitCode {
    jobmesh::main()
}
