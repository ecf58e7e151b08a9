//! The binary under test: Jobmesh, built together with its tests; and `bench`, which measures it.

mod bench;

fn main() -> std::process::ExitCode {
    let mut words = std::env::args();
    if words.next().is_some_and(|name| name == bench::pickup::PROGRAM) {
        return bench::pickup::serve();
    }
    if words.next().is_some_and(|word| word == "bench") {
        return bench::main();
    }
    jobmesh::main()
}
