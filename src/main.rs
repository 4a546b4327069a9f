//! Hands the command line to [`vetch::cli`], nothing else.

fn main() -> std::process::ExitCode {
    vetch::cli::main()
}
