//! The transmission phase, sans IO: [`request`] and [`reply`] turn messages into values and back.

pub mod reply;
pub mod request;
