//! From observations to one verdict: the root cause, its origin, its consequences.
//!
//! Pure and deterministic: time comes in through the door, same input, same output. The only door is
//! [`Engine`]: [`Engine::observe`] and [`Engine::tick`] mutate, then drain [`Engine::poll_effect`] until it
//! is empty before the next mutation, and call again no later than [`Engine::next_deadline`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod chain;
pub mod cnis;
mod config;
mod engine;
mod errno;
pub mod explain;
mod facts;
mod hold;
mod judge;
pub mod limits;
mod memory;
mod observation;
mod origins;
mod outcome;
mod range;
mod reason;
mod recording;
mod rules;
mod verdict;

pub use config::Config;
pub use engine::Engine;
pub use errno::{errno_name, errno_words};
pub use facts::{is_same_path, refusal, socket_errno};
pub use observation::*;
pub use outcome::Outcome;
pub use range::Range;
pub use reason::{Reason, Side, Status};
pub use recording::{Line, RecordingHeader};
pub use verdict::{Condition, ConditionType, Effect, Evidence, Finding, Report};
