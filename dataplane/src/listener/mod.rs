//! Listening sockets. They belong to the process and live as long as their address is configured; workers borrow them.

pub mod socket;
