//! HTTP messages over a connection's transport: where `torus-codec` (bytes) meets `torus-ring` (I/O). Both sides of the proxy use it.

pub mod body_data;
pub mod body_reader;
pub mod body_writer;
pub mod head_reader;
pub mod http2;

pub use body_data::BodyData;
pub use body_reader::{BodyError, BodyEvent, BodyReader};
pub use body_writer::BodyWriter;
pub use head_reader::{HeadError, HeadReader};
