//! `--start`: the command of a target's server, which runs only while that target is measured.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::CompareError;

/// How long a server may take until it listens, and until it has ended when it is told to.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the socket of a server that has ended may go on listening.
const LEFTOVER: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(10);
const CONNECT: Duration = Duration::from_millis(200);

/// A server that is ended with this value.
pub(super) struct Server(Child);

impl Server {
    /// Starts `command` in a shell and waits until one of `addresses` listens.
    ///
    /// Errors: it cannot be started, ends at once, or does not listen in time.
    pub(super) fn start(command: &str, addresses: &[SocketAddr]) -> Result<Server, CompareError> {
        let fail = |what: String| CompareError::Start { command: command.to_owned(), what };
        let listens = || addresses.iter().any(|address| TcpStream::connect_timeout(address, CONNECT).is_ok());
        // The sockets of a server that used io_uring are closed a moment after its end.
        let begun = Instant::now();
        while listens() && begun.elapsed() < LEFTOVER {
            sleep(STEP);
        }
        if listens() {
            return Err(fail("something listens at the target already".to_owned()));
        }
        // In place of the shell, so that a signal meets the server itself.
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("exec {command}")).stdin(Stdio::null()).stdout(Stdio::null());
        let mut server = Server(shell.spawn().map_err(|error| fail(error.to_string()))?);
        let begun = Instant::now();
        while !listens() {
            if let Ok(Some(status)) = server.0.try_wait() {
                return Err(fail(format!("it ended before it listened: {status}")));
            }
            if begun.elapsed() > PATIENCE {
                return Err(fail(format!("nothing listens at the target after {} s", PATIENCE.as_secs())));
            }
            sleep(STEP);
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let id = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        let told = id.is_some_and(|id| kill_process(id, Signal::TERM).is_ok());
        let begun = Instant::now();
        while told && begun.elapsed() < PATIENCE {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            sleep(STEP);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
