//! Turns observations of a node into one verdict: the root cause, its origin and its consequences.
//!
//! It is pure and deterministic: time is an argument, and the same input gives the same output. The entry point is [`Engine`].
//! After each call of [`Engine::observe`] or [`Engine::tick`], drain [`Engine::poll_effect`]; call [`Engine::tick`] no later
//! than [`Engine::next_deadline`].
//!
//! `observation` defines what goes in, `facts` what is remembered of it and for how long (`memory`), `rules` which faults the
//! facts prove, `chain` which fault is the cause of which, `judge` the verdict, `hold` the damping of conditions, and `verdict`
//! what comes out.
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
pub use errno::{errno_name, errno_words, socket_words};
pub use facts::is_same_path;
pub use observation::*;
pub use outcome::Outcome;
pub use range::Range;
pub use reason::{Reason, Side, Status};
pub use recording::{Line, RecordingHeader};
pub use verdict::{Condition, ConditionType, Effect, Evidence, Finding, Report};
