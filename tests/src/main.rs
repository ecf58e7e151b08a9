//! The binary under test: Jobmesh itself, built beside the tests that run it.

fn main() -> std::process::ExitCode {
    jobmesh::main()
}
