//! The `torus-load` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use torus_load::distributed::worker;
use torus_load::{compare, run, serve};

/// Load generator and test server for HTTP, gRPC, WebSocket and TCP.
#[derive(Parser)]
#[command(name = "torus-load", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one value of it")]
enum Command {
    /// Send requests on a schedule and report how long they took.
    Run(run::Options),
    /// Run the same load on several targets in turn, and say what can be shown of their differences.
    Compare(compare::Options),
    /// Answer every request with what it was, or as its query asks.
    Serve(serve::Options),
    /// Send a part of the runs that `run --workers` coordinates elsewhere.
    Worker(worker::Options),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help is no error; and 2, which would be clap's own code, is that of a missed objective.
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    let result = match arguments.command {
        Command::Run(options) => run::run(&options).map_err(|error| error.to_string()),
        Command::Compare(options) => compare::run(&options).map_err(|error| error.to_string()),
        Command::Worker(options) => {
            worker::run(&options).map(|()| ExitCode::SUCCESS).map_err(|error| error.to_string())
        }
        Command::Serve(options) => serve::run(&options).map(|()| ExitCode::SUCCESS).map_err(|error| error.to_string()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("torus-load: {error}");
        ExitCode::FAILURE
    })
}
