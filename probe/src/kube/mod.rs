//! Client of the API server: writes the conditions of the Node object and events, and reads what only the API server knows. All
//! of it may fail for any length of time; nothing else waits for it.

mod access;
mod helper;
mod patch;
mod reads;
mod schedule;
mod writer;

pub(crate) use writer::{WriterInput, run};
