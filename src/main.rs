//! The `pg-iam-proxy` program. The architecture is described in the library's crate documentation.

fn main() -> std::process::ExitCode {
    pg_iam_proxy::cli::main()
}
