//! The binary under test: Jobmesh itself, built beside the tests that run it; and `bench`, which
//! measures it.

mod bench;

fn main() -> std::process::ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == "bench") {
        return bench::main();
    }
    jobmesh::main()
}
