//! Talking to the server: one request and answer, and the live connection.

pub mod http;
pub mod live;
mod socket;
