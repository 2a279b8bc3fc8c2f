//! The `torus-load` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use torus_load::serve;

/// Load generator and test server for HTTP.
#[derive(Parser)]
#[command(name = "torus-load", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer every request with what it was, or as its query asks.
    Serve(serve::Options),
}

fn main() -> ExitCode {
    let Command::Serve(options) = Arguments::parse().command;
    match serve::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("torus-load: {error}");
            ExitCode::FAILURE
        }
    }
}
