//! The route table.

/// A compiled RouteConfiguration.
#[derive(Default)]
pub struct RouteTable {}
