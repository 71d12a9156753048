//! The API server, spoken to with an account: the conditions of the Node object, events, and what only the API
//! knows. All of it may fail for as long as it likes; nothing else waits for it.

mod access;
mod helper;
mod patch;
mod reads;
mod schedule;
mod writer;

pub(crate) use writer::{News, run};
