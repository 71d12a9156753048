//! The wire contract of the kernel half and the user half: records, codes, limits, settings, skip reasons.
//!
//! Nothing here decides anything. Every record starts with a [`Header`] that names its [`Code`]; every byte
//! of it is a named field, which `IntoBytes` proves at compile time, and any bytes at all are a valid value,
//! which `FromBytes` proves. [`decode()`] is total: whatever it is given, it answers with an event or an error.
#![no_std]
#![forbid(unsafe_code)]

mod decode;
mod hook;
mod record;

pub use decode::{DecodeError, Event, decode, made_at, text};
pub use hook::{Hook, Skip};
pub use record::*;
