//! A Hub on this machine, for tests: it speaks the API of huggingface.co over hyper, and can be told to misbehave.
//!
//! Nothing here is linked into the program. It panics where a test would.

mod http;
mod hub;

pub use http::{Reply, Request, Server};
pub use hub::{COMMIT, Faults, Hub, OTHER_COMMIT, Repo, Wanted};
