//! The wire contract of the kernel programs and the agent: records, codes, limits, settings, skip reasons.
//!
//! This crate contains no policy. Every record starts with a [`Header`] that holds its [`Code`]. Every byte
//! of a record belongs to a named field, which `IntoBytes` proves at compile time, and any byte sequence of
//! the right size is a valid value, which `FromBytes` proves. [`decode()`] is total: it returns an event or
//! an error for any input.
#![no_std]
#![forbid(unsafe_code)]

mod decode;
mod hook;
mod layout;
mod map;
mod record;

pub use decode::{DecodeError, Event, decode, recorded_at, text};
pub use hook::{Hook, Skip};
pub use map::*;
pub use record::*;
