//! `admin`: what can be changed of a torusd that runs.

use super::{CtlError, Server, Verdict, client, output};

#[derive(clap::Subcommand)]
pub(super) enum Command {
    /// What torusd logs; with --level from now on
    #[command(visible_alias = "l")]
    Log {
        /// error, warn, info, debug, or a filter as RUST_LOG takes it
        #[arg(long, value_name = "FILTER")]
        level: Option<String>,
        #[command(flatten)]
        server: Server,
    },
}

pub(super) fn run(command: &Command) -> Result<Verdict, CtlError> {
    let Command::Log { level, server } = command;
    let answer = match level {
        Some(level) => client::put(&server.http_address, &format!("/debug/log?level={}", client::escape(level)))?,
        None => client::get(&server.http_address, "/debug/log")?,
    };
    output::print(&answer)?;
    Ok(Verdict::Well)
}
