//! The front end as its users see it: text in, plan or diagnostics out.

mod codes;
mod common;
mod fmt;
mod reference;
mod robust;
mod shipped;
