//! Load generator and test server.
