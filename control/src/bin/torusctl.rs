//! torusctl: the user's command line, with istioctl's names.

use std::process::ExitCode;

fn main() -> ExitCode {
    torus_control::ctl::main()
}
