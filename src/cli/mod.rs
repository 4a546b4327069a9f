//! The command line: a file per subcommand.

/// Parses the arguments of the process and runs what they ask for.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
