//! HTTP/2 over a ring socket: the `h2` codec on the ring's executor, and where its messages meet `torus-codec`'s.

mod field_block;
pub mod frame_meter;
pub mod io;
pub mod keepalive;
pub mod message;
pub mod options;
pub mod receiver;
pub mod sender;

pub use frame_meter::{FrameLimits, FrameMeter, Offence};
pub use io::{RingIo, SharedSocket};
pub use keepalive::Keepalive;
pub use options::{Http2Options, KeepaliveOptions};
pub use receiver::BodyReceiver;
pub use sender::BodySender;
