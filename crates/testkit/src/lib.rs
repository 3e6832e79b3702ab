//! What the tests of several crates share; nothing here is linked into the program, and it panics where a test would.
//!
//! [`Hub`] is a Hub on this machine: it speaks the API of huggingface.co over hyper, and can be told to misbehave. [`python`] and
//! [`shared`] give what not every machine has, or say that a test is skipped.

mod http;
mod hub;
mod needs;

pub use http::{Reply, Request, Server};
pub use hub::{COMMIT, Faults, Hub, OTHER_COMMIT, Repo, Wanted};
pub use needs::{ask, python, shared, skip};
