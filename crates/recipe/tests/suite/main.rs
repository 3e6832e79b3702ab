//! The front end as its users see it: text in, plan or diagnostics out.

mod common;
mod shipped;
