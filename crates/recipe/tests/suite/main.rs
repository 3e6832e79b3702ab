//! The front end as its users see it: text in, plan or diagnostics out.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod codes;
mod common;
mod fmt;
mod reference;
mod robust;
mod shipped;
