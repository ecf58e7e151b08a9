//! The binary of Jobmesh.

fn main() -> std::process::ExitCode {
    jobmesh::main()
}
